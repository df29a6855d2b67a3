// Help for tests only: whether this program runs under a sanitizer, where the same work takes ten times as long.
//
//   constexpr int kOperations = kSanitized ? 20'000 : 150'000;
//
// Thread rules: a constant.
#pragma once

namespace dyn {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define DYN_SANITIZED 1
#endif
#endif
#ifdef DYN_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace dyn

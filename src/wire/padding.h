// kReadPadding: how many readable bytes the JSON parser wants behind a document.
//
//   Buffer in;
//   in.reserve(n + kReadPadding);      // then a frame of n bytes can be parsed in place
//   decode_request(payload, codec, limits, wire::Padding::kPresent);
//
// The bytes may hold anything (the next frame, old data); they are read, never interpreted. A caller that cannot
// promise them says so (Padding::kNone, the default everywhere), and the document is copied first.
#pragma once

#include <cstddef>

namespace dyn::wire {

inline constexpr size_t kReadPadding = 64;

enum class Padding : bool { kNone, kPresent };

}  // namespace dyn::wire

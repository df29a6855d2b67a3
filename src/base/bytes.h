// Bytes: views of octets, and SharedBytes: immutable octets that may cross threads without a copy.
//
// A Bytes view does not own; it is valid as long as what it was taken from. SharedBytes is reference counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace dyn {

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

inline Bytes as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}
inline std::string_view as_text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Big-endian integers, the byte order of all of Dynamo's binary framing. `at` must have room; no bounds are checked.
template <class T>
inline T load_be(const std::byte* at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>((value << 8) | static_cast<uint8_t>(at[i]));
  return value;
}
template <class T>
inline void store_be(std::byte* at, T value) {
  for (size_t i = sizeof(T); i-- > 0; value = static_cast<T>(value >> 8)) at[i] = static_cast<std::byte>(value & 0xFF);
}

}  // namespace dyn

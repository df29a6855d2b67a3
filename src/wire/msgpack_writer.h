// Writing msgpack: each value in its shortest form, appended to a Buffer.
//
//   pack_map(out, 2);
//   pack_str(out, "id");
//   pack_uint(out, 7);
//   pack_str(out, "tags");
//   pack_array(out, 0);
//
// Counts of members are given beforehand; that they match is the caller's duty. Strings that are no UTF-8 are made
// valid with U+FFFD. Thread rules: plain functions on the caller's buffer.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/buffer.h"
#include "base/bytes.h"

namespace dyn::wire {

namespace detail {

// A marker byte and an integer behind it.
template <class T>
inline void pack_marked(Buffer& out, uint8_t marker, T value) {
  std::byte* at = out.extend(1 + sizeof(T));
  at[0] = static_cast<std::byte>(marker);
  store_be(at + 1, value);
}

inline void pack_byte(Buffer& out, uint8_t byte) {
  *out.extend(1) = static_cast<std::byte>(byte);
}

// Containers: up to 15 elements in the marker, then 16 and 32 bits.
inline void pack_count(Buffer& out, size_t count, uint8_t fix, uint8_t marker16) {
  if (count < 16) {
    pack_byte(out, static_cast<uint8_t>(fix | count));
  } else if (count <= 0xFFFF) {
    pack_marked(out, marker16, static_cast<uint16_t>(count));
  } else {
    pack_marked(out, static_cast<uint8_t>(marker16 + 1), static_cast<uint32_t>(count));
  }
}

}  // namespace detail

inline void pack_nil(Buffer& out) {
  detail::pack_byte(out, 0xC0);
}
inline void pack_bool(Buffer& out, bool value) {
  detail::pack_byte(out, value ? 0xC3 : 0xC2);
}
inline void pack_array(Buffer& out, size_t count) {
  detail::pack_count(out, count, 0x90, 0xDC);
}
inline void pack_map(Buffer& out, size_t count) {
  detail::pack_count(out, count, 0x80, 0xDE);
}

inline void pack_uint(Buffer& out, uint64_t value) {
  if (value < 0x80) {
    detail::pack_byte(out, static_cast<uint8_t>(value));
  } else if (value <= 0xFF) {
    detail::pack_marked(out, 0xCC, static_cast<uint8_t>(value));
  } else if (value <= 0xFFFF) {
    detail::pack_marked(out, 0xCD, static_cast<uint16_t>(value));
  } else if (value <= 0xFFFFFFFF) {
    detail::pack_marked(out, 0xCE, static_cast<uint32_t>(value));
  } else {
    detail::pack_marked(out, 0xCF, value);
  }
}

inline void pack_int(Buffer& out, int64_t value) {
  if (value >= 0) {
    pack_uint(out, static_cast<uint64_t>(value));
  } else if (value >= -32) {
    detail::pack_byte(out, static_cast<uint8_t>(value));
  } else if (value >= INT8_MIN) {
    detail::pack_marked(out, 0xD0, static_cast<uint8_t>(value));
  } else if (value >= INT16_MIN) {
    detail::pack_marked(out, 0xD1, static_cast<uint16_t>(value));
  } else if (value >= INT32_MIN) {
    detail::pack_marked(out, 0xD2, static_cast<uint32_t>(value));
  } else {
    detail::pack_marked(out, 0xD3, static_cast<uint64_t>(value));
  }
}

inline void pack_double(Buffer& out, double value) {
  detail::pack_marked(out, 0xCB, std::bit_cast<uint64_t>(value));
}
inline void pack_float(Buffer& out, float value) {
  detail::pack_marked(out, 0xCA, std::bit_cast<uint32_t>(value));
}

void pack_str(Buffer& out, std::string_view text);
void pack_bin(Buffer& out, Bytes bytes);

}  // namespace dyn::wire

// UTF-8 validity: what is read must be valid, what is written is made valid.
//
//   size_t bad = find_invalid_utf8(text);                    // std::string_view::npos: all valid
//   size_t n = utf8_sequence_bytes(p, left);                 // 0: no valid sequence starts here
//
// Valid as Unicode has it: no overlong forms, no surrogates, nothing above U+10FFFF. Thread rules: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace dyn::wire {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// Bytes of the sequence that starts at `at`, of which `left` >= 1 may be read.
inline size_t utf8_sequence_bytes(const char* at, size_t left) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(at[i]); };
  const auto tail = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return left >= 2 && tail(1) ? 2 : 0;
  if (lead < 0xF0) {
    if (left < 3 || !tail(1) || !tail(2)) return 0;
    if (lead == 0xE0 && byte(1) < 0xA0) return 0;  // overlong
    if (lead == 0xED && byte(1) > 0x9F) return 0;  // surrogate
    return 3;
  }
  if (lead > 0xF4 || left < 4 || !tail(1) || !tail(2) || !tail(3)) return 0;
  if (lead == 0xF0 && byte(1) < 0x90) return 0;
  if (lead == 0xF4 && byte(1) > 0x8F) return 0;
  return 4;
}

// Position of the first byte that is no valid UTF-8, or npos.
inline size_t find_invalid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    if (text.size() - i >= sizeof(uint64_t)) {  // eight ASCII characters at once
      uint64_t word = 0;
      std::memcpy(&word, text.data() + i, sizeof(word));
      if ((word & 0x8080808080808080U) == 0) {
        i += sizeof(word);
        continue;
      }
    }
    const size_t length = utf8_sequence_bytes(text.data() + i, text.size() - i);
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

}  // namespace dyn::wire

// Help for tests only: bytes as text, to be compared with captured ones.
//
//   EXPECT_EQ(hex(out.view()), "82a9776f726b...");
//
// Thread rules: plain function.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace dyn {

inline std::string hex(Bytes bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : bytes) {
    text += kDigits[static_cast<uint8_t>(byte) >> 4];
    text += kDigits[static_cast<uint8_t>(byte) & 15];
  }
  return text;
}

}  // namespace dyn

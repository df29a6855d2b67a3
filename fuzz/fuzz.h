// What all fuzz targets share: the entry point's input as Bytes, and an expectation that aborts.
//
//   DYN_FUZZ_TARGET(Bytes in) {
//     auto frame = decode(in);
//     expect(frame.size() <= in.size());
//   }
//
// The input is copied to memory of exactly its size, so that the address sanitizer sees every read beyond it.
#pragma once

#include <cstdlib>
#include <vector>

#include "base/bytes.h"

namespace dyn::fuzz {

inline void expect(bool holds) {
  if (!holds) std::abort();
}

inline std::vector<std::byte> exact_copy(Bytes in) {
  return {in.begin(), in.end()};
}

}  // namespace dyn::fuzz

#define DYN_FUZZ_TARGET(parameter)                                                             \
  static void fuzz_one(parameter);                                                             \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {                    \
    const auto copy = dyn::fuzz::exact_copy({reinterpret_cast<const std::byte*>(data), size}); \
    fuzz_one(copy);                                                                            \
    return 0;                                                                                  \
  }                                                                                            \
  static void fuzz_one(parameter)

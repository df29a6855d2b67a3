// Help for tests only: the bytes of a .safetensors file.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>

namespace dyn::native {

inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  std::string bytes;
  for (unsigned shift = 0; shift < 64; shift += 8) bytes.push_back(static_cast<char>(uint64_t{header.size()} >> shift));
  return bytes + header + data;
}

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace dyn::native

#include "base/ids.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <cerrno>
#include <cstddef>
#include <random>

namespace dyn {

uint64_t random_u64() {
  uint64_t value = 0;
  auto* at = reinterpret_cast<std::byte*>(&value);
  size_t left = sizeof(value);
  while (left > 0) {
    const ssize_t got = getrandom(at, left, 0);
    if (got < 0) {
      if (errno == EINTR) continue;
      // No getrandom on this kernel: the library's source, which reads the device.
      std::random_device device;
      return (static_cast<uint64_t>(device()) << 32) | device();
    }
    at += got;
    left -= static_cast<size_t>(got);
  }
  return value;
}

std::string random_uuid() {
  const uint64_t high = (random_u64() & 0xFFFF'FFFF'FFFF'0FFFULL) | 0x4000ULL;
  const uint64_t low = (random_u64() & 0x3FFF'FFFF'FFFF'FFFFULL) | 0x8000'0000'0000'0000ULL;
  return fmt::format("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", high >> 32, (high >> 16) & 0xFFFF, high & 0xFFFF, low >> 48,
                     low & 0xFFFF'FFFF'FFFFULL);
}

std::string to_hex(uint64_t id) {
  return fmt::format("{:x}", id);
}

}  // namespace dyn

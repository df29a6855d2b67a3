#include "native/model/host_arena.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "base/posix.h"

namespace dyn::native {
namespace {

constexpr uint64_t kHugePage = 2u << 20;

}  // namespace

Result<HostArena> HostArena::allocate(uint64_t bytes) {
  HostArena arena;
  if (bytes == 0) return arena;
  if (bytes > (uint64_t{1} << 46))
    return Error{Code::kOverloaded, fmt::format("{} bytes are more than any machine has", bytes)};
  const uint64_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) {
    return Error{Code::kOverloaded, fmt::format("cannot allocate {} MiB: {}", size >> 20, errno_text(errno))};
  }
  ::madvise(at, size, MADV_HUGEPAGE);  // a wish; without it everything still works
  arena.data_ = static_cast<std::byte*>(at);
  arena.size_ = size;
  return arena;
}

HostArena::HostArena(HostArena&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

HostArena& HostArena::operator=(HostArena&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

HostArena::~HostArena() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace dyn::native

#include "native/model/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>

#include "base/posix.h"

namespace dyn::native {
namespace {

constexpr uintptr_t kPage = 4096;
// A page fault maps up to this much around it, thus also pages that another thread has dropped already.
constexpr uintptr_t kFaultAround = 64u << 10;

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  auto fd = open_fd(path, O_RDONLY | O_CLOEXEC);
  if (!fd) return fd.error();
  struct stat info{};
  if (::fstat(fd->get(), &info) != 0) return errno_error(path, errno);
  if (!S_ISREG(info.st_mode)) return invalid_argument(path + ": not a regular file");
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return MappedFile(Bytes{});
  void* at = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd->get(), 0);
  if (at == MAP_FAILED) return errno_error("cannot map " + path, errno);
  return MappedFile(Bytes(static_cast<const std::byte*>(at), size));
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::want(Bytes part) {
  const auto begin = reinterpret_cast<uintptr_t>(part.data()) / kPage * kPage;
  const auto end = reinterpret_cast<uintptr_t>(part.data()) + part.size();
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
}

void MappedFile::drop(Bytes part) const {
  const auto first = reinterpret_cast<uintptr_t>(bytes_.data());
  const auto last = first + bytes_.size();
  const auto at = reinterpret_cast<uintptr_t>(part.data());
  const auto begin = std::max(first, at - std::min(at, kFaultAround)) / kPage * kPage;
  const auto end = std::min(last, at + part.size() + kFaultAround);
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace dyn::native

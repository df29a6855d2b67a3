// Thin help around POSIX calls: an owned file descriptor, readable errno texts, whole-file reads with a limit.
//
//   auto file = open_fd(path, O_RDONLY | O_CLOEXEC);
//   if (!file) return file.error();                     // "cannot open /x: Permission denied"
//   auto text = read_all(file->get(), 1 << 20);
//
// Thread rules: UniqueFd is a plain value; the functions are safe from any thread.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace dyn {

// Owns one file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { reset(); }

  [[nodiscard]] int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

// "Permission denied" for EACCES; unlike strerror() safe from any thread.
std::string errno_text(int error);

// "what: errno text", with the code that fits: ENOENT is kNotFound, EEXIST kAlreadyExists, the rest kUnavailable.
Error errno_error(std::string_view what, int error);

Result<UniqueFd> open_fd(const std::string& path, int flags, unsigned mode = 0);

// Everything from the present position to the end; more than `max_bytes` is an error.
Result<std::string> read_all(int fd, size_t max_bytes);
Result<void> write_all(int fd, std::string_view bytes);

// As many descriptors as this process may have: the usual soft limit of 1,024 is too low for a connection a stream.
void raise_descriptor_limit();

// The file with these parts, one after the other, under `path` when it is complete and on the disk: readers see what
// was there before, or all of it. It is written beside `path`; what an error leaves is removed.
Result<void> replace_file(const std::string& path, std::initializer_list<std::string_view> parts, unsigned mode = 0644);

}  // namespace dyn

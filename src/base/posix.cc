#include "base/posix.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace dyn {

void UniqueFd::reset(int fd) {
  if (fd_ >= 0 && fd_ != fd) ::close(fd_);
  fd_ = fd;
}

std::string errno_text(int error) {
  std::array<char, 128> buffer{};
  // The GNU form returns the text, which need not be in the buffer.
  return ::strerror_r(error, buffer.data(), buffer.size());
}

Error errno_error(std::string_view what, int error) {
  Code code = Code::kUnavailable;
  if (error == ENOENT) code = Code::kNotFound;
  if (error == EEXIST) code = Code::kAlreadyExists;
  return {code, std::string(what) + ": " + errno_text(error)};
}

Result<UniqueFd> open_fd(const std::string& path, int flags, unsigned mode) {
  for (;;) {
    const int fd = ::open(path.c_str(), flags, mode);
    if (fd >= 0) return UniqueFd(fd);
    if (errno != EINTR) return errno_error("cannot open " + path, errno);
  }
}

Result<std::string> read_all(int fd, size_t max_bytes) {
  std::string text;
  std::array<char, 16384> part{};
  for (;;) {
    const ssize_t got = ::read(fd, part.data(), part.size());
    if (got == 0) return text;
    if (got < 0) {
      if (errno == EINTR) continue;
      return errno_error("cannot read", errno);
    }
    if (static_cast<size_t>(got) > max_bytes - text.size()) {
      return invalid_argument("longer than the limit of " + std::to_string(max_bytes) + " bytes");
    }
    text.append(part.data(), static_cast<size_t>(got));
  }
}

Result<void> write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd, bytes.data(), bytes.size());
    if (put < 0) {
      if (errno == EINTR) continue;
      return errno_error("cannot write", errno);
    }
    bytes.remove_prefix(static_cast<size_t>(put));
  }
  return {};
}

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

Result<void> replace_file(const std::string& path, std::initializer_list<std::string_view> parts, unsigned mode) {
  const std::string temporary = path + ".new-" + std::to_string(::getpid());
  const auto write = [&]() -> Result<void> {
    auto file = open_fd(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (!file) return file.error();
    for (const std::string_view part : parts) {
      if (auto written = write_all(file->get(), part); !written) return written.error().with_context(temporary);
    }
    if (::fsync(file->get()) != 0) return errno_error("cannot write " + temporary, errno);
    if (::rename(temporary.c_str(), path.c_str()) != 0) return errno_error("cannot write " + path, errno);
    // The name, too, is on the disk only with its folder.
    const size_t slash = path.find_last_of('/');
    auto folder =
        open_fd(slash == std::string::npos ? "." : path.substr(0, slash + 1), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (!folder) return folder.error();
    if (::fsync(folder->get()) != 0) return errno_error("cannot write " + path, errno);
    return {};
  };
  auto written = write();
  if (!written) ::unlink(temporary.c_str());
  return written;
}

}  // namespace dyn

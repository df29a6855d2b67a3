#include "runtime/discovery/bucket_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "base/ids.h"
#include "base/posix.h"
#include "runtime/discovery/record_rules.h"

namespace dyn::runtime {
namespace {

constexpr char kTempPrefix[] = ".dynamo_trtllm_tmp_";
// The releases wait as long: 100 tries, 10 ms apart.
constexpr int kLockTries = 100;
// Sweeping can wait for the next time; refreshing, on the same thread, cannot.
constexpr int kSweepLockTries = 10;
constexpr std::chrono::milliseconds kLockPause(10);
// The directory may be deleted between opening it and linking into it.
constexpr int kPublishTries = 3;

// What, why, and what to do about it.
Error store_error(const std::string& what, int error) {
  Error result = errno_error(what, error);
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
      result.message += "; give this user write permission there or set DYN_FILE_KV to another directory";
      break;
    case ENOTDIR:
    case EEXIST:
      result.message += "; remove what is in the way or set DYN_FILE_KV to another directory";
      break;
    case ENOSPC:
    case EDQUOT:
      result.message += "; free some space or set DYN_FILE_KV to another directory";
      break;
    default:
      break;
  }
  return result;
}

Error link_error(const std::string& path, int error) {
  if (error == EPERM || error == EOPNOTSUPP || error == ENOSYS || error == EMLINK) {
    return {Code::kUnsupported, fmt::format("cannot link {}: {}; the file system has no hard links, which publication "
                                            "needs: set DYN_FILE_KV to a directory on another one, or use etcd",
                                            path, errno_text(error))};
  }
  return store_error("cannot link " + path, error);
}

timespec to_timespec(BucketDirs::WallTime time) {
  const auto since = time.time_since_epoch();
  const auto seconds = std::chrono::floor<std::chrono::seconds>(since);
  return {.tv_sec = static_cast<time_t>(seconds.count()),
          .tv_nsec = static_cast<long>(std::chrono::nanoseconds(since - seconds).count())};
}

bool is_before(const timespec& time, BucketDirs::WallTime limit) {
  const timespec end = to_timespec(limit);
  return std::pair(time.tv_sec, time.tv_nsec) < std::pair(end.tv_sec, end.tv_nsec);
}

struct DirCloser {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

// Names of the entries of an open directory, without "." and "..".
Result<std::vector<std::string>> names_in(int dir_fd, const std::string& path) {
  // Its own descriptor: closedir() closes it, and the read position is its own.
  const int copy = ::openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return store_error("cannot read the directory " + path, errno);
  const std::unique_ptr<DIR, DirCloser> dir(::fdopendir(copy));
  if (!dir) {
    const int error = errno;
    ::close(copy);
    return store_error("cannot read the directory " + path, error);
  }
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  if (errno != 0) return store_error("cannot read the directory " + path, errno);
  return names;
}

std::optional<struct stat> stat_file(int dir_fd, const std::string& name) {
  struct stat info{};
  if (::fstatat(dir_fd, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
  return info;
}

}  // namespace

// An open bucket directory, locked for as long as the object lives.
class BucketDirs::Lock {
 public:
  static Result<Lock> take(const std::string& path, int tries = kLockTries) {
    for (int attempt = 0; attempt < tries; ++attempt) {
      UniqueFd dir(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (!dir) return store_error("cannot open the directory " + path, errno);
      if (::flock(dir.get(), LOCK_EX | LOCK_NB) == 0 || (errno != EWOULDBLOCK && errno != EINTR)) {
        // Any other error: this file system has no locks. The releases before 1.5 did not lock either.
        return Lock(std::move(dir));
      }
      std::this_thread::sleep_for(kLockPause);
    }
    return Error{Code::kUnavailable,
                 fmt::format("the directory {} stays locked by another process; find it with 'fuser {}'", path, path)};
  }
  [[nodiscard]] int fd() const { return dir_.get(); }

 private:
  explicit Lock(UniqueFd dir) : dir_(std::move(dir)) {}
  UniqueFd dir_;  // closing it unlocks
};

// A complete file in the root, unlinked at the end.
class BucketDirs::TempFile {
 public:
  static Result<TempFile> write(const std::string& root, const std::string& text) {
    TempFile temp(fmt::format("{}/{}{:016x}", root, kTempPrefix, random_u64()));
    // Readable and, umask permitting, writable for all: processes of other users refresh and sweep as equals.
    const int fd = ::open(temp.path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0) {
      const int error = errno;
      temp.path_.clear();
      return store_error("cannot make a file in " + root, error);
    }
    const UniqueFd file(fd);
    if (auto written = write_all(fd, text); !written) {
      return written.error().with_context("making a file in " + root);
    }
    return temp;
  }
  TempFile(TempFile&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TempFile& operator=(TempFile&&) = delete;
  ~TempFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  explicit TempFile(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

std::string BucketDirs::path_of(const std::string& bucket, const std::string& name) const {
  return root_ + "/" + bucket + "/" + name;
}

Result<void> BucketDirs::publish(const std::string& bucket, const std::string& name, const std::string& text,
                                 Publish how, WallTime expired_before) const {
  const std::string dir = root_ + "/" + bucket;
  Error last = internal_error("unreachable");
  for (int attempt = 0; attempt < kPublishTries; ++attempt) {
    std::error_code error;
    std::filesystem::create_directories(dir, error);
    if (error) return store_error("cannot make the directory " + dir, error.value());
    // Written first: the lock is held only for unlink and link.
    const auto temp = TempFile::write(root_, text);
    if (!temp) {
      last = temp.error();
      if (last.code == Code::kNotFound) continue;
      return last;
    }
    const auto lock = Lock::take(dir);
    if (!lock) {
      last = lock.error();
      if (last.code == Code::kNotFound) continue;
      return last;
    }
    const auto present = stat_file(lock->fd(), name);
    if (present && (how == Publish::kReplace || is_before(present->st_mtim, expired_before))) {
      if (::unlinkat(lock->fd(), name.c_str(), 0) != 0 && errno != ENOENT) {
        return store_error("cannot replace " + path_of(bucket, name), errno);
      }
    }
    if (::linkat(AT_FDCWD, temp->path().c_str(), lock->fd(), name.c_str(), 0) == 0) return {};
    const int link_errno = errno;
    if (link_errno == EEXIST) return errno_error("cannot link " + path_of(bucket, name), link_errno);
    if (link_errno != ENOENT) return link_error(path_of(bucket, name), link_errno);
    last = link_error(path_of(bucket, name), link_errno);
  }
  return last;
}

Result<void> BucketDirs::refresh(const std::string& bucket, const std::string& name) const {
  const std::string path = path_of(bucket, name);
  if (::utimensat(AT_FDCWD, path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW) == 0) return {};
  return store_error("cannot refresh " + path, errno);
}

Result<void> BucketDirs::remove(const std::string& bucket, const std::string& name) const {
  // A record that must go goes even when the lock cannot be had.
  const auto lock = Lock::take(root_ + "/" + bucket);
  const std::string path = path_of(bucket, name);
  if (::unlink(path.c_str()) == 0 || errno == ENOENT || errno == ENOTDIR) return {};
  return store_error("cannot remove " + path, errno);
}

Result<std::vector<FoundFile>> BucketDirs::read(const std::string& bucket, WallTime expired_before) const {
  const std::string path = root_ + "/" + bucket;
  const auto lock = Lock::take(path);
  if (!lock) {
    if (lock.error().code == Code::kNotFound) return std::vector<FoundFile>{};
    return lock.error();
  }
  auto names = names_in(lock->fd(), path);
  if (!names) return names.error();
  std::vector<FoundFile> files;
  for (auto& name : *names) {
    if (name.starts_with('.')) continue;  // ".tmp_*" of Dynamo 1.x writers
    const auto info = stat_file(lock->fd(), name);
    if (!info || is_before(info->st_mtim, expired_before)) continue;
    const UniqueFd file(::openat(lock->fd(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (!file) continue;  // gone meanwhile
    if (auto text = read_all(file.get(), kMaxRecordBytes)) files.push_back({std::move(name), std::move(*text)});
  }
  return files;
}

Result<unsigned> BucketDirs::sweep(const std::string& bucket, WallTime expired_before,
                                   const std::function<bool(const std::string& name)>& keep) const {
  const std::string path = root_ + "/" + bucket;
  const auto lock = Lock::take(path, kSweepLockTries);
  if (!lock) {
    if (lock.error().code == Code::kNotFound) return 0U;
    return lock.error();
  }
  const auto names = names_in(lock->fd(), path);
  if (!names) return names.error();
  unsigned removed = 0;
  for (const auto& name : *names) {
    if (keep(name)) continue;
    const auto info = stat_file(lock->fd(), name);
    if (!info || !is_before(info->st_mtim, expired_before)) continue;
    if (::unlinkat(lock->fd(), name.c_str(), 0) == 0) {
      ++removed;
    } else if (errno != ENOENT) {
      return store_error("cannot remove the expired " + path_of(bucket, name), errno);
    }
  }
  return removed;
}

void BucketDirs::remove_leftovers(WallTime expired_before) const {
  const auto dir = open_fd(root_, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (!dir) return;
  const auto names = names_in(dir->get(), root_);
  if (!names) return;
  for (const auto& name : *names) {
    if (!name.starts_with(kTempPrefix)) continue;
    const auto info = stat_file(dir->get(), name);
    if (info && is_before(info->st_mtim, expired_before)) ::unlinkat(dir->get(), name.c_str(), 0);
  }
}

Result<void> BucketDirs::check_writable() const {
  const auto temp = TempFile::write(root_, "");
  if (!temp) return temp.error();
  return {};
}

}  // namespace dyn::runtime

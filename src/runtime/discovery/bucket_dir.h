// The file operations under the file discovery: buckets as directories, records as files in them. No threads, no state
// but the root; who owns which record is not known here.
//
//   BucketDirs dirs(root);
//   dirs.publish("v1/instances", "dynamo%2Fbackend%2Fgenerate%2F1f", json, Publish::kCreate);
//
// Publishing, removing, listing and sweeping hold flock(LOCK_EX) on the bucket's directory, as Dynamo 1.5 does; a file
// system without such locks is used without them. Directories are opened anew for each operation: somebody may delete
// and make them again meanwhile. Thread rules: safe from any thread. Facts: lib/runtime/src/storage/kv/file.rs.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace dyn::runtime {

enum class Publish { kCreate, kReplace };

struct FoundFile {
  std::string name;
  std::string text;
};

class BucketDirs {
 public:
  using WallTime = std::chrono::system_clock::time_point;

  // `root`: a canonical path of a directory that exists.
  explicit BucketDirs(std::string root) : root_(std::move(root)) {}

  [[nodiscard]] const std::string& root() const { return root_; }
  [[nodiscard]] std::string path_of(const std::string& bucket, const std::string& name) const;

  // One create event with the complete text, or nothing. With kCreate a file of that name is kAlreadyExists, unless it
  // was last refreshed before `expired_before`.
  Result<void> publish(const std::string& bucket, const std::string& name, const std::string& text, Publish how,
                       WallTime expired_before) const;

  // Sets the modification time to now. kNotFound when the file or its directory is gone.
  Result<void> refresh(const std::string& bucket, const std::string& name) const;

  // A file that is not there is no error.
  Result<void> remove(const std::string& bucket, const std::string& name) const;

  // Files refreshed since `expired_before` that are no longer than kMaxRecordBytes; none when there is no such bucket.
  Result<std::vector<FoundFile>> read(const std::string& bucket, WallTime expired_before) const;

  // Unlinks files last refreshed before `expired_before`, except those `keep` wants.
  Result<unsigned> sweep(const std::string& bucket, WallTime expired_before,
                         const std::function<bool(const std::string& name)>& keep) const;

  // Temporary files that processes left in the root when they died before `expired_before`.
  void remove_leftovers(WallTime expired_before) const;

  // Whether a file can be made in the root.
  [[nodiscard]] Result<void> check_writable() const;

 private:
  class Lock;
  class TempFile;
  std::string root_;
};

}  // namespace dyn::runtime

// The control groups of this process that have a controller, and short files of /proc and /sys.
//
//   for (const CgroupFolder& group : cgroup_folders("memory")) {
//     read_small_file(group.path + (group.version == 2 ? "/memory.max" : "/memory.limit_in_bytes"));
//   }
//
// Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/. Thread rules: any thread; reads files.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dyn {

struct CgroupFolder {
  std::string path;  // without a slash at the end; it need not exist
  int version = 2;
};

// The group of this process and all groups above it, which limit it too, nearest first. A process may be in groups of
// both versions. The folders are arguments for tests only.
std::vector<CgroupFolder> cgroup_folders(std::string_view controller, const std::string& proc = "/proc",
                                         const std::string& root = "/sys/fs/cgroup");

// At most 1 MiB of text; empty when the file cannot be read.
std::string read_small_file(const std::string& path);

}  // namespace dyn

#include "native/exec/cpu/host_memory.h"

#include <fcntl.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>

#include "base/posix.h"

namespace dyn::native {
namespace {

constexpr size_t kMaxFileBytes = 1u << 20;
constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

std::string read_text(const std::string& path) {
  auto file = open_fd(path, O_RDONLY | O_CLOEXEC);
  if (!file) return {};
  auto text = read_all(file->get(), kMaxFileBytes);
  return text ? std::move(*text) : std::string();
}

// The first number in `text`, or `fallback` ("max", an absent file).
uint64_t number(std::string_view text, uint64_t fallback) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return fallback;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + begin, text.data() + text.size(), value);
  return error == std::errc() ? value : fallback;
}

// The number after "key" at the beginning of a line.
uint64_t field(std::string_view text, std::string_view key, uint64_t fallback) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    if (line.starts_with(key)) return number(line.substr(key.size()), fallback);
    text.remove_prefix(std::min(text.size(), line.size() + 1));
  }
  return fallback;
}

struct MemoryFiles {
  const char* limit;
  const char* usage;
  const char* file_cache;  // of memory.stat: pages the kernel can drop at once
};

// What the group at `path` below `root`, and each group above it, leave.
uint64_t cgroup_room(const std::string& root, std::string path, const MemoryFiles& files) {
  uint64_t room = kNoLimit;
  while (true) {
    while (!path.empty() && path.back() == '/') path.pop_back();
    const std::string folder = root + path + "/";
    if (const uint64_t limit = number(read_text(folder + files.limit), kNoLimit); limit != kNoLimit) {
      const uint64_t cache = field(read_text(folder + "memory.stat"), files.file_cache, 0);
      uint64_t used = number(read_text(folder + files.usage), 0);
      used -= std::min(used, cache);
      room = std::min(room, limit - std::min(limit, used));
    }
    if (path.empty()) return room;
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
}

}  // namespace

uint64_t available_memory_bytes(const std::string& proc, const std::string& cgroups) {
  uint64_t room = field(read_text(proc + "/meminfo"), "MemAvailable:", kNoLimit / 1024) * 1024;
  const std::string groups = read_text(proc + "/self/cgroup");
  std::string_view rest = groups;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));  // hierarchy:controllers:path
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const size_t first = line.find(':');
    const size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const std::string controllers = "," + std::string(line.substr(first + 1, second - first - 1)) + ",";
    const std::string path(line.substr(second + 1));
    if (line.starts_with("0::")) {
      room = std::min(room, cgroup_room(cgroups, path, {"memory.max", "memory.current", "inactive_file "}));
    } else if (controllers.find(",memory,") != std::string::npos) {
      room = std::min(room, cgroup_room(cgroups + "/memory", path,
                                        {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "}));
    }
  }
  return room;
}

uint64_t default_kv_bytes(double free_fraction) {
  return static_cast<uint64_t>(static_cast<double>(available_memory_bytes()) * std::clamp(free_fraction, 0.0, 1.0));
}

}  // namespace dyn::native

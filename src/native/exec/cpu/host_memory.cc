#include "native/exec/cpu/host_memory.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>

#include "base/cgroup.h"

namespace dyn::native {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

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
constexpr MemoryFiles kVersion1{"/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file "};
constexpr MemoryFiles kVersion2{"/memory.max", "/memory.current", "inactive_file "};

}  // namespace

uint64_t available_memory_bytes(const std::string& proc, const std::string& cgroups) {
  uint64_t room = field(read_small_file(proc + "/meminfo"), "MemAvailable:", kNoLimit / 1024) * 1024;
  for (const CgroupFolder& group : cgroup_folders("memory", proc, cgroups)) {
    const MemoryFiles& files = group.version == 1 ? kVersion1 : kVersion2;
    const uint64_t limit = number(read_small_file(group.path + files.limit), kNoLimit);
    if (limit == kNoLimit) continue;
    const uint64_t cache = field(read_small_file(group.path + "/memory.stat"), files.file_cache, 0);
    uint64_t used = number(read_small_file(group.path + files.usage), 0);
    used -= std::min(used, cache);
    room = std::min(room, limit - std::min(limit, used));
  }
  return room;
}

uint64_t default_kv_bytes(double free_fraction) {
  return static_cast<uint64_t>(static_cast<double>(available_memory_bytes()) * std::clamp(free_fraction, 0.0, 1.0));
}

}  // namespace dyn::native

#include "native/exec/cpu/host_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/test_support.h"

namespace dyn::native {
namespace {

void write(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

TEST(AvailableMemory, IsMemAvailableWithoutGroups) {
  const TempDir dir;
  write(dir / "proc/meminfo", "MemTotal:       100 kB\nMemAvailable:    40 kB\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 40U * 1024);
}

TEST(AvailableMemory, RespectsVersion2AndItsParents) {
  const TempDir dir;
  write(dir / "proc/meminfo", "MemAvailable: 1000000 kB\n");
  write(dir / "proc/self/cgroup", "0::/pod/worker\n");
  write(dir / "cgroup/pod/worker/memory.max", "max\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 1'000'000U * 1024);
  write(dir / "cgroup/pod/memory.max", "5000\n");
  write(dir / "cgroup/pod/memory.current", "3000\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 2000U);
  write(dir / "cgroup/pod/memory.stat", "active_file 9\ninactive_file 500\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 2500U);
  write(dir / "cgroup/pod/worker/memory.max", "100\n");
  write(dir / "cgroup/pod/worker/memory.current", "900\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 0U);
}

TEST(AvailableMemory, RespectsVersion1) {
  const TempDir dir;
  write(dir / "proc/meminfo", "MemAvailable: 1000000 kB\n");
  write(dir / "proc/self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/docker/abc\n");
  write(dir / "cgroup/memory/docker/abc/memory.limit_in_bytes", "7000\n");
  write(dir / "cgroup/memory/docker/abc/memory.usage_in_bytes", "1000\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 6000U);
}

TEST(DefaultKvBytes, IsAShareOfTheMemoryOfThisMachine) {
  const uint64_t half = default_kv_bytes(0.5);
  EXPECT_GT(half, uint64_t{1} << 20);
  EXPECT_EQ(default_kv_bytes(0.0), 0U);
}

}  // namespace
}  // namespace dyn::native

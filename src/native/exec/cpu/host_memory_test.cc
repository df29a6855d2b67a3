#include "native/exec/cpu/host_memory.h"

#include <gtest/gtest.h>

#include "base/test_support.h"

namespace dyn::native {
namespace {

TEST(AvailableMemory, IsMemAvailableWithoutGroups) {
  const TempDir dir;
  dir.write("proc/meminfo", "MemTotal:       100 kB\nMemAvailable:    40 kB\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 40U * 1024);
}

TEST(AvailableMemory, RespectsVersion2AndItsParents) {
  const TempDir dir;
  dir.write("proc/meminfo", "MemAvailable: 1000000 kB\n");
  dir.write("proc/self/cgroup", "0::/pod/worker\n");
  dir.write("cgroup/pod/worker/memory.max", "max\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 1'000'000U * 1024);
  dir.write("cgroup/pod/memory.max", "5000\n");
  dir.write("cgroup/pod/memory.current", "3000\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 2000U);
  dir.write("cgroup/pod/memory.stat", "active_file 9\ninactive_file 500\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 2500U);
  dir.write("cgroup/pod/worker/memory.max", "100\n");
  dir.write("cgroup/pod/worker/memory.current", "900\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 0U);
}

TEST(AvailableMemory, RespectsVersion1) {
  const TempDir dir;
  dir.write("proc/meminfo", "MemAvailable: 1000000 kB\n");
  dir.write("proc/self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/docker/abc\n");
  dir.write("cgroup/memory/docker/abc/memory.limit_in_bytes", "7000\n");
  dir.write("cgroup/memory/docker/abc/memory.usage_in_bytes", "1000\n");
  EXPECT_EQ(available_memory_bytes(dir / "proc", dir / "cgroup"), 6000U);
}

TEST(DefaultKvBytes, IsAShareOfTheMemoryOfThisMachine) {
  const uint64_t half = default_kv_bytes(0.5);
  EXPECT_GT(half, uint64_t{1} << 20);
  EXPECT_EQ(default_kv_bytes(0.0), 0U);
}

}  // namespace
}  // namespace dyn::native

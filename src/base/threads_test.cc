#include "base/threads.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/cgroup.h"
#include "base/test_support.h"

namespace dyn {
namespace {

TEST(CgroupFolders, AreTheGroupAndThoseAboveIt) {
  const TempDir dir;
  dir.write("proc/self/cgroup", "4:cpu,cpuacct:/x\n0::/pod/worker\n3:memory:/docker/abc/\n");
  std::vector<std::string> paths;
  for (const CgroupFolder& folder : cgroup_folders("memory", dir / "proc", "/g")) {
    paths.push_back(std::to_string(folder.version) + folder.path);
  }
  EXPECT_EQ(paths, (std::vector<std::string>{"2/g/pod/worker", "2/g/pod", "2/g", "1/g/memory/docker/abc",
                                             "1/g/memory/docker", "1/g/memory"}));
  EXPECT_TRUE(cgroup_folders("memory", dir / "nothing", "/g").empty());
}

TEST(CpuQuota, IsTheLeastOfAllGroups) {
  const TempDir dir;
  const auto quota = [&] { return cpu_quota(dir / "proc", dir / "cgroup"); };
  EXPECT_EQ(quota(), 0U);
  dir.write("proc/self/cgroup", "0::/pod/worker\n5:cpu,cpuacct:/old\n");
  dir.write("cgroup/pod/worker/cpu.max", "max 100000\n");
  EXPECT_EQ(quota(), 0U);
  dir.write("cgroup/pod/cpu.max", "450000 100000\n");
  EXPECT_EQ(quota(), 5U);
  dir.write("cgroup/cpu/old/cpu.cfs_quota_us", "-1\n");
  dir.write("cgroup/cpu/old/cpu.cfs_period_us", "50000\n");
  EXPECT_EQ(quota(), 5U);
  dir.write("cgroup/cpu/old/cpu.cfs_quota_us", "100000\n");
  EXPECT_EQ(quota(), 2U);
  dir.write("cgroup/pod/worker/cpu.max", "rubbish\n");
  EXPECT_EQ(quota(), 2U);
}

TEST(PinThread, BindsTheCallingThreadAlone) {
  const std::vector<unsigned> all = affinity_cpus();
  ASSERT_FALSE(all.empty());
  EXPECT_LE(usable_cpus(), all.size());
  std::thread([&] {
    EXPECT_FALSE(pin_thread({}));
    const unsigned last = all.back();
    EXPECT_TRUE(pin_thread({&last, 1}));
    EXPECT_EQ(affinity_cpus(), std::vector<unsigned>{last});
  }).join();
  EXPECT_EQ(affinity_cpus(), all);
}

}  // namespace
}  // namespace dyn

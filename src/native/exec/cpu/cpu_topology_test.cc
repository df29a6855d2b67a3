#include "native/exec/cpu/cpu_topology.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/format.h>

#include "base/test_support.h"
#include "base/threads.h"

namespace dyn::native {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::IsEmpty;

// Two nodes of two cores with two hardware threads each, numbered as Linux does: the second threads come last.
class TwoNodes {
 public:
  TwoNodes() {
    dir_.write("devices/system/node/online", "0,2\n");
    dir_.write("devices/system/node/node0/cpulist", "0-1,4-5\n");
    dir_.write("devices/system/node/node2/cpulist", "2-3,6-7\n");
    for (unsigned cpu = 0; cpu < 8; ++cpu) {
      dir_.write(fmt::format("devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu),
                 fmt::format("{},{}\n", cpu % 4, cpu % 4 + 4));
    }
  }
  [[nodiscard]] std::vector<Cpu> read(const std::vector<unsigned>& usable) const {
    return read_cpus(dir_.path(), usable);
  }

 private:
  TempDir dir_;
};

std::vector<std::vector<unsigned>> cpus_of(const std::vector<ThreadPlace>& places) {
  std::vector<std::vector<unsigned>> cpus;
  for (const ThreadPlace& place : places) cpus.push_back(place.cpus);
  return cpus;
}
std::vector<unsigned> nodes_of(const std::vector<ThreadPlace>& places) {
  std::vector<unsigned> nodes;
  for (const ThreadPlace& place : places) nodes.push_back(place.node);
  return nodes;
}

const std::vector<unsigned> kAll = {0, 1, 2, 3, 4, 5, 6, 7};

TEST(CpuList, IsReadAsTheKernelWritesIt) {
  EXPECT_THAT(parse_cpu_list("0-2,7,10-11\n"), ElementsAre(0, 1, 2, 7, 10, 11));
  EXPECT_THAT(parse_cpu_list("\n"), IsEmpty());
  EXPECT_THAT(parse_cpu_list("x,3,5-,4294967295,9-1"), ElementsAre(3));
}

TEST(CpuTopology, KnowsCoresAndNodes) {
  const std::vector<Cpu> cpus = TwoNodes().read({1, 5, 6});
  ASSERT_EQ(cpus.size(), 3U);
  EXPECT_EQ(cpus[1].id, 5U);
  EXPECT_EQ(cpus[1].core, 1U);
  EXPECT_EQ(cpus[2].core, 2U);
  EXPECT_EQ(cpus[2].node, 2U);
}

TEST(CpuTopology, TakesAMachineWithoutDescriptionForCoresOfOneNode) {
  const TempDir empty;
  const std::vector<Cpu> cpus = read_cpus(empty.path(), kAll);
  EXPECT_EQ(default_threads(cpus, 0), 8U);
  EXPECT_THAT(nodes_of(place_threads(cpus, 8, 0)), Each(0U));
}

TEST(DefaultThreads, AreOneACoreWithinMaskAndQuota) {
  const TwoNodes machine;
  EXPECT_EQ(default_threads(machine.read(kAll), 0), 4U);
  EXPECT_EQ(default_threads(machine.read({0, 4}), 0), 1U);
  EXPECT_EQ(default_threads(machine.read(kAll), 3), 3U);
  EXPECT_EQ(default_threads(machine.read(kAll), 6), 4U);
  EXPECT_EQ(default_threads({}, 0), 1U);
  EXPECT_GE(default_threads(), 1U);
  EXPECT_LE(default_threads(), usable_cpus());
}

TEST(PlaceThreads, BindsToCoresWhenEveryCoreHasAThread) {
  const TwoNodes machine;
  auto places = place_threads(machine.read(kAll), 4, 0);
  EXPECT_THAT(cpus_of(places), ElementsAre(ElementsAre(0, 4), ElementsAre(1, 5), ElementsAre(2, 6), ElementsAre(3, 7)));
  EXPECT_THAT(nodes_of(places), ElementsAre(0, 0, 1, 1));
  // One more than cores: a second thread on a core.
  places = place_threads(machine.read(kAll), 5, 0);
  EXPECT_THAT(cpus_of(places), ElementsAre(ElementsAre(0, 4), ElementsAre(1, 5), ElementsAre(0, 4), ElementsAre(2, 6),
                                           ElementsAre(3, 7)));
  // The mask leaves three processors: a core of both threads, and one of one.
  places = place_threads(machine.read({1, 3, 5}), 2, 0);
  EXPECT_THAT(cpus_of(places), ElementsAre(ElementsAre(1, 5), ElementsAre(3)));
}

TEST(PlaceThreads, SpreadsFewerThreadsOverNodesWithoutChoosingCores) {
  const TwoNodes machine;
  auto places = place_threads(machine.read(kAll), 2, 0);
  EXPECT_THAT(cpus_of(places), ElementsAre(ElementsAre(0, 1, 4, 5), ElementsAre(2, 3, 6, 7)));
  EXPECT_THAT(nodes_of(places), ElementsAre(0, 1));
  places = place_threads(machine.read(kAll), 1, 0);
  EXPECT_THAT(nodes_of(places), ElementsAre(0));
  places = place_threads(machine.read({0, 1, 2}), 2, 0);
  EXPECT_THAT(nodes_of(places), ElementsAre(0, 1));
  // More threads than processors.
  EXPECT_THAT(nodes_of(place_threads(machine.read(kAll), 9, 0)), ElementsAre(0, 0, 0, 0, 0, 1, 1, 1, 1));
}

TEST(PlaceThreads, LeavesTheChoiceToTheKernelWhereOthersShareTheProcessors) {
  const TwoNodes machine;
  EXPECT_THAT(place_threads(machine.read({0, 1, 4, 5}), 1, 0), Each(ThreadPlace{}));  // a part of one node
  EXPECT_THAT(place_threads(machine.read(kAll), 4, 4), Each(ThreadPlace{}));          // a quota: any of the processors
  EXPECT_EQ(place_threads(machine.read(kAll), 4, 8), place_threads(machine.read(kAll), 4, 0));  // one that is none
  EXPECT_EQ(place_threads({}, 0, 0).size(), 1U);
}

}  // namespace
}  // namespace dyn::native

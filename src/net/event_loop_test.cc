#include "net/event_loop.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <set>
#include <stdexcept>
#include <thread>

#include "net/local_address.h"

namespace dyn::net {
namespace {
using namespace std::chrono_literals;

constexpr auto kLongEnough = 10s;

TEST(EventLoop, RunsPostedWorkOnItsOwnThreadInOrder) {
  LoopPool loops(2, "test");
  loops.start();
  std::promise<std::vector<int>> done;
  std::vector<int> seen;
  for (int i = 0; i < 100; ++i) {
    loops.at(1).post([&, i] {
      EXPECT_TRUE(loops.at(1).in_loop_thread());
      EXPECT_FALSE(loops.at(0).in_loop_thread());
      seen.push_back(i);
      if (i == 99) done.set_value(seen);
    });
  }
  auto future = done.get_future();
  ASSERT_EQ(future.wait_for(kLongEnough), std::future_status::ready);
  const auto order = future.get();
  ASSERT_EQ(order.size(), 100U);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST(EventLoop, RunSyncWaitsAndRunsHereWhenTheLoopDoesNotRun) {
  LoopPool loops(1, "test");
  EventLoop& loop = loops.at(0);
  std::thread::id where;
  loop.run_sync([&] { where = std::this_thread::get_id(); });
  EXPECT_EQ(where, std::this_thread::get_id());
  loops.start();
  loop.run_sync([&] { where = std::this_thread::get_id(); });
  EXPECT_NE(where, std::this_thread::get_id());
  bool nested = false;
  loop.run_sync([&] { loop.run_sync([&] { nested = true; }); });
  EXPECT_TRUE(nested);
}

TEST(EventLoop, SurvivesAHandlerThatThrows) {
  LoopPool loops(1, "test");
  loops.start();
  loops.at(0).post([] { throw std::runtime_error("a defect"); });
  bool ran = false;
  loops.at(0).run_sync([&] { ran = true; });
  EXPECT_TRUE(ran);
}

TEST(EventLoop, StopsAndStartsAgain) {
  LoopPool loops(1, "test");
  int runs = 0;
  for (int i = 0; i < 3; ++i) {
    loops.start();
    loops.at(0).run_sync([&] { ++runs; });
    loops.stop();
  }
  EXPECT_EQ(runs, 3);
}

TEST(LoopPool, NextGoesRound) {
  LoopPool loops(3, "test");
  std::multiset<unsigned> seen;
  for (int i = 0; i < 6; ++i) seen.insert(loops.next().index());
  EXPECT_EQ(seen, (std::multiset<unsigned>{0, 0, 1, 1, 2, 2}));
}

TEST(Waker, MergesWakesOfABusyLoop) {
  LoopPool loops(1, "test");
  loops.start();
  std::atomic<int> calls = 0;
  auto waker = loops.at(0).add_waker([&] { ++calls; });
  std::promise<void> entered;
  std::promise<void> release;
  loops.at(0).post([&] {
    entered.set_value();
    release.get_future().wait();
  });
  entered.get_future().wait();
  for (int i = 0; i < 1000; ++i) waker->wake();
  release.set_value();
  while (calls.load() == 0) std::this_thread::yield();
  loops.at(0).run_sync([] {});
  EXPECT_LE(calls.load(), 2);
  loops.stop();
}

TEST(Waker, LosesNoWake) {
  LoopPool loops(1, "test");
  loops.start();
  constexpr uint64_t kRounds = 20'000;
  std::atomic<uint64_t> produced = 0;
  uint64_t consumed = 0;
  std::promise<void> all;
  auto waker = loops.at(0).add_waker([&] {
    const uint64_t seen = produced.load(std::memory_order_relaxed);
    if (seen == consumed) return;
    consumed = seen;
    if (consumed == kRounds) all.set_value();
  });
  for (uint64_t i = 0; i < kRounds; ++i) {
    produced.fetch_add(1, std::memory_order_relaxed);
    waker->wake();
  }
  EXPECT_EQ(all.get_future().wait_for(kLongEnough), std::future_status::ready);
  loops.stop();
}

TEST(Waker, MayBeUsedAfterTheLoopIsGone) {
  auto loops = std::make_unique<LoopPool>(1, "test");
  loops->start();
  auto waker = loops->at(0).add_waker([] {});
  loops.reset();
  waker->wake();
}

TEST(LocalAddress, IsAConcreteLiteral) {
  const std::string address = local_address();
  EXPECT_FALSE(is_wildcard(address));
  auto again = resolve_host(address);
  ASSERT_TRUE(again);
  EXPECT_EQ(*again, address);
}

TEST(LocalAddress, FormatsHostAndPort) {
  EXPECT_EQ(host_port("10.0.0.7", 80), "10.0.0.7:80");
  EXPECT_EQ(host_port("::1", 80), "[::1]:80");
  EXPECT_FALSE(resolve_host("no such host."));
  EXPECT_TRUE(is_wildcard("::"));
}

}  // namespace
}  // namespace dyn::net

#include "runtime/request_plane/admission.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace dyn::runtime {
namespace {

using Verdict = Admission::Verdict;

struct Waiter final : Admission::Waiter {
  void on_slot() override { slots.fetch_add(1); }
  std::atomic<int> slots = 0;
};

TEST(Admission, RunsThenQueuesThenRefuses) {
  Admission admission({.running = 1, .queued = 2, .queued_bytes = 100});
  auto first = std::make_shared<Waiter>();
  auto second = std::make_shared<Waiter>();
  auto third = std::make_shared<Waiter>();
  EXPECT_EQ(admission.enter(first, 1), Verdict::kRun);
  EXPECT_EQ(admission.enter(second, 1), Verdict::kQueued);
  EXPECT_EQ(admission.enter(third, 1), Verdict::kQueued);
  EXPECT_EQ(admission.enter(std::make_shared<Waiter>(), 1), Verdict::kFull);
  EXPECT_EQ(admission.queued(), 2U);

  admission.release();
  EXPECT_EQ(second->slots, 1);
  EXPECT_EQ(third->slots, 0);
  EXPECT_EQ(admission.running(), 1U);
  admission.release();
  EXPECT_EQ(third->slots, 1);
  admission.release();
  EXPECT_EQ(admission.running(), 0U);
}

TEST(Admission, BoundsTheBytesThatWait) {
  Admission admission({.running = 1, .queued = 10, .queued_bytes = 100});
  EXPECT_EQ(admission.enter(std::make_shared<Waiter>(), 1000), Verdict::kRun);
  EXPECT_EQ(admission.enter(std::make_shared<Waiter>(), 60), Verdict::kQueued);
  EXPECT_EQ(admission.enter(std::make_shared<Waiter>(), 60), Verdict::kFull);
  EXPECT_EQ(admission.enter(std::make_shared<Waiter>(), 40), Verdict::kQueued);
  admission.release();
  EXPECT_EQ(admission.enter(std::make_shared<Waiter>(), 60), Verdict::kQueued);
}

TEST(Admission, WaitersMayLeave) {
  Admission admission({.running = 1, .queued = 1, .queued_bytes = 10});
  auto runs = std::make_shared<Waiter>();
  auto waits = std::make_shared<Waiter>();
  EXPECT_EQ(admission.enter(runs, 0), Verdict::kRun);
  EXPECT_EQ(admission.enter(waits, 10), Verdict::kQueued);
  EXPECT_FALSE(admission.leave_queue(runs.get()));
  EXPECT_TRUE(admission.leave_queue(waits.get()));
  EXPECT_FALSE(admission.leave_queue(waits.get()));
  EXPECT_EQ(waits.use_count(), 1);
  EXPECT_EQ(admission.enter(waits, 10), Verdict::kQueued);
  admission.release();
  EXPECT_EQ(waits->slots, 1);
  EXPECT_FALSE(admission.leave_queue(waits.get()));
}

// Each waiter that entered either runs exactly once or left, and every slot comes back.
TEST(Admission, KeepsItsBooksUnderContention) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 5000;
  Admission admission({.running = 3, .queued = 5, .queued_bytes = 1000});
  std::atomic<int> running = 0;
  std::atomic<int> most = 0;
  const auto work = [&] {
    const int now = running.fetch_add(1) + 1;
    int seen = most.load();
    while (seen < now && !most.compare_exchange_weak(seen, now)) {
    }
    running.fetch_sub(1);
  };
  const auto body = [&] {
    for (int i = 0; i < kRounds; ++i) {
      auto waiter = std::make_shared<Waiter>();
      const Verdict verdict = admission.enter(waiter, 1);
      if (verdict == Verdict::kFull) continue;
      if (verdict == Verdict::kQueued) {
        if (i % 3 == 0 && admission.leave_queue(waiter.get())) continue;
        while (waiter->slots.load() == 0) std::this_thread::yield();
      }
      work();
      admission.release();
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(body);
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(admission.running(), 0U);
  EXPECT_EQ(admission.queued(), 0U);
  EXPECT_LE(most.load(), 3);
}

}  // namespace
}  // namespace dyn::runtime

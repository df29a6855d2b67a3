#include "native/exec/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace dyn::native {
namespace {

TEST(ThreadPool, RunsEveryItemOnceWhateverTheCount) {
  for (unsigned threads : {1U, 2U, 5U}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (uint32_t count : {0U, 1U, 2U, 7U, 1000U}) {
      std::vector<uint32_t> seen(count);  // plain: each element is written by one item
      pool.run(count, [&](uint32_t i, unsigned worker) {
        EXPECT_LT(worker, threads);
        ++seen[i];
      });
      EXPECT_EQ(seen, std::vector<uint32_t>(count, 1));
    }
  }
}

// Each job reads what the one before wrote: a job that began too early, or returned too soon, shows.
TEST(ThreadPool, JobsFollowEachOther) {
  ThreadPool pool(4);
  std::vector<uint64_t> values(13);
  constexpr uint64_t kJobs = 20'000;
  for (uint64_t job = 0; job < kJobs; ++job) {
    const auto count = static_cast<uint32_t>(1 + job % values.size());
    pool.run(count, [&](uint32_t i, unsigned) { values[i] += job; });
  }
  std::vector<uint64_t> expected(values.size());
  for (uint64_t job = 0; job < kJobs; ++job) {
    for (size_t i = 0; i < 1 + job % values.size(); ++i) expected[i] += job;
  }
  EXPECT_EQ(values, expected);
}

TEST(ThreadPool, WakesParkedWorkers) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(2 * ThreadPool::kSpin + std::chrono::milliseconds(1));
    std::atomic<int> together{0};
    // Ends only if two threads are in the job at once: the caller alone would wait for ever.
    pool.run(2, [&](uint32_t, unsigned) {
      ++together;
      while (together < 2) std::this_thread::yield();
    });
    EXPECT_EQ(together, 2);
  }
}

TEST(ThreadPool, WaitsForASlowItem) {
  ThreadPool pool(2);
  std::atomic<int> done{0};
  pool.run(2, [&](uint32_t, unsigned worker) {
    if (worker != 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ++done;
  });
  EXPECT_EQ(done, 2);
}

TEST(ThreadPool, ManyItems) {
  ThreadPool pool(2);
  constexpr uint32_t kItems = (1U << 20) + 5;  // more than one job holds
  std::vector<uint8_t> seen(kItems);
  pool.run(kItems, [&](uint32_t i, unsigned) { ++seen[i]; });
  EXPECT_EQ(seen, std::vector<uint8_t>(kItems, 1));
}

}  // namespace
}  // namespace dyn::native

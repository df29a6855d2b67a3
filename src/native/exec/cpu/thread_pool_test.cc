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

// Three workers on two nodes. Each item holds its worker until every worker has one, so that nobody can help others.
TEST(ThreadPool, WorkersTakeTheItemsOfTheirNodeFirst) {
  ThreadPool pool(std::vector<ThreadPlace>{{.node = 0}, {.node = 0}, {.node = 1}});
  EXPECT_EQ(pool.nodes(), 2U);
  EXPECT_EQ(pool.share_of(0, 30).end, 20U);
  EXPECT_EQ(pool.share_of(20, 30).node, 1U);
  EXPECT_EQ(pool.share_of(29, 30).end, 30U);
  for (int round = 0; round < 50; ++round) {
    std::vector<unsigned> worker_of(3, 9);
    std::atomic<int> holding{0};
    pool.run(3, [&](uint32_t i, unsigned worker) {
      worker_of[i] = worker;
      ++holding;
      while (holding < 3) std::this_thread::yield();
    });
    EXPECT_LT(worker_of[0], 2U);
    EXPECT_LT(worker_of[1], 2U);
    EXPECT_EQ(worker_of[2], 2U);
  }
}

TEST(ThreadPool, HelpsTheOtherNodeAtTheEnd) {
  ThreadPool pool(std::vector<ThreadPlace>{{.node = 0}, {.node = 1}});
  std::vector<std::vector<uint32_t>> seen{{0, 0, 0}, {0}, {}};
  // Only the caller's node has items: two of them are in work at once, so the other one's worker has helped.
  std::atomic<int> together{0};
  pool.run_on_nodes(std::vector<uint32_t>{2, 0}, [&](unsigned node, uint32_t index, unsigned) {
    EXPECT_EQ(node, 0U);
    ++seen[node][index];
    ++together;
    while (together < 2) std::this_thread::yield();
  });
  pool.run_on_nodes(std::vector<uint32_t>{1, 1}, [&](unsigned node, uint32_t index, unsigned) { ++seen[node][index]; });
  EXPECT_EQ(seen, (std::vector<std::vector<uint32_t>>{{2, 1, 0}, {1}, {}}));
  std::vector<uint32_t> counts(1000);
  for (uint32_t count : {0U, 1U, 2U, 3U, 1000U}) {
    pool.run(count, [&](uint32_t i, unsigned) { ++counts[i]; });
  }
  EXPECT_EQ(counts[0], 4U);
  EXPECT_EQ(counts[2], 2U);
  EXPECT_EQ(counts[999], 1U);
}

}  // namespace
}  // namespace dyn::native

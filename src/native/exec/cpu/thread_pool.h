// ThreadPool: the compute threads of an executor. The caller is worker 0; a job is a number of items that the workers
// take one by one.
//
//   ThreadPool pool(2);                        // or ThreadPool pool(place_threads(0));
//   pool.run(rows, [&](uint32_t row, unsigned worker) { ... });   // returns when every item is done
//
// On a machine with several memory nodes each node's workers take first from that node's share of the items: a
// contiguous run of them, always the same one for the same count. So they read what they have touched first. Only then
// they help others. Workers are bound to the processors of their places; the caller is not, since threads it starts
// later would inherit that.
//
// A step of a small model runs hundreds of jobs of some ten microseconds, so handing one over must cost less than a
// microsecond: idle workers spin for kSpin before they park in the kernel, and a job does not wait for a worker that
// took no item of it (a worker the kernel does not run right now costs nothing). Thread rules: run() from one thread,
// not from inside an item; items must not throw.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>
#include <thread>
#include <vector>

#include "native/exec/cpu/cpu_topology.h"

namespace dyn::native {

class ThreadPool {
 public:
  static constexpr std::chrono::microseconds kSpin{50};

  explicit ThreadPool(unsigned threads);  // caller included, at least 1; the kernel chooses where they run
  explicit ThreadPool(const std::vector<ThreadPlace>& places);  // the caller's first, nodes ascending
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  [[nodiscard]] unsigned size() const { return static_cast<unsigned>(node_of_.size()); }
  [[nodiscard]] unsigned nodes() const { return static_cast<unsigned>(shares_.size()); }

  // The node whose workers take item `index` of `count` first, and where its share ends.
  struct Share {
    unsigned node = 0;
    uint64_t end = 0;
  };
  [[nodiscard]] Share share_of(uint64_t index, uint64_t count) const;

  // Calls item(index, worker) for every index below `count`, in any order, worker below size().
  template <class Item>
  void run(uint32_t count, const Item& item) {
    if (count == 1 || workers_.empty()) {
      for (uint32_t i = 0; i < count; ++i) item(i, 0);
      return;
    }
    for (uint32_t base = 0; base < count; base += kMaxItems) {
      const uint32_t part = count - base < kMaxItems ? count - base : kMaxItems;
      auto shifted = [&](uint32_t index, unsigned worker) { item(base + index, worker); };
      for (unsigned node = 0; node < nodes(); ++node) shares_[node].end = end_of_share(node, part);
      run_shifted(shifted, part);
    }
  }

  // Calls item(node, index, worker) for every index below counts[node]; the workers of a node take those first.
  // counts.size() == nodes(), all of them together less than 2^20.
  template <class Item>
  void run_on_nodes(std::span<const uint32_t> counts, const Item& item) {
    uint32_t end = 0;
    for (unsigned node = 0; node < nodes(); ++node) shares_[node].end = end += counts[node];
    auto found = [&](uint32_t index, unsigned worker) {
      unsigned node = 0;
      while (index >= counts[node]) index -= counts[node++];
      item(node, index, worker);
    };
    run_shifted(found, end);
  }

 private:
  static constexpr uint32_t kMaxItems = (1u << 20) - 1;  // of one job
  using Function = void (*)(const void* context, uint32_t index, unsigned worker);

  // The items of one node: those from the end of the node before it to `end`.
  struct alignas(64) NodeShare {
    // Job number (24 bits), end of the items (20), next item (20). One word, so that an item is only ever taken from
    // the job whose end was read.
    std::atomic<uint64_t> ticket{0};
    uint32_t end = 0;      // the caller's, of the next job
    unsigned workers = 0;  // of all nodes up to this one
  };

  template <class Item>
  void run_shifted(const Item& item, uint32_t count) {
    run_job([](const void* job, uint32_t index, unsigned worker) { (*static_cast<const Item*>(job))(index, worker); },
            &item, count);
  }
  void run_job(Function function, const void* context, uint32_t count);
  bool run_one(unsigned worker);
  bool run_one_of(NodeShare& share, bool own, uint64_t& job, unsigned worker);
  void work(unsigned worker);
  void park();
  [[nodiscard]] bool any_item() const;
  [[nodiscard]] uint32_t end_of_share(unsigned node, uint64_t count) const {
    return static_cast<uint32_t>(count * shares_[node].workers / size());
  }

  // Written by the caller while no item is open, read by workers that hold an item.
  Function function_ = nullptr;
  const void* context_ = nullptr;

  std::vector<unsigned> node_of_;  // [worker]
  std::vector<NodeShare> shares_;  // [node]
  uint64_t job_ = 0;
  alignas(64) std::atomic<uint32_t> finished_{0};
  std::atomic<bool> caller_parked_{false};
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace dyn::native

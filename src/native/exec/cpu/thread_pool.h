// ThreadPool: the compute threads of an executor. The caller is worker 0; a job is a number of items that the workers
// take one by one.
//
//   ThreadPool pool(2);
//   pool.run(rows, [&](uint32_t row, unsigned worker) { ... });   // returns when every item is done
//
// A step of a small model runs hundreds of jobs of some ten microseconds, so handing one over must cost less than a
// microsecond: idle workers spin for kSpin before they park in the kernel, and a job does not wait for a worker that
// took no item of it (a worker the kernel does not run right now costs nothing). Thread rules: run() from one thread,
// not from inside an item; items must not throw.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace dyn::native {

class ThreadPool {
 public:
  static constexpr std::chrono::microseconds kSpin{50};

  explicit ThreadPool(unsigned threads);  // caller included, at least 1
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  [[nodiscard]] unsigned size() const { return static_cast<unsigned>(workers_.size()) + 1; }

  // Calls item(index, worker) for every index below `count`, in any order, worker below size().
  template <class Item>
  void run(uint32_t count, const Item& item) {
    if (count == 1 || workers_.empty()) {
      for (uint32_t i = 0; i < count; ++i) item(i, 0);
      return;
    }
    for (uint32_t base = 0; base < count; base += kMaxItems) {
      auto shifted = [&](uint32_t index, unsigned worker) { item(base + index, worker); };
      using Shifted = decltype(shifted);
      run_job(
          [](const void* job, uint32_t index, unsigned worker) { (*static_cast<const Shifted*>(job))(index, worker); },
          &shifted, count - base < kMaxItems ? count - base : kMaxItems);
    }
  }

 private:
  static constexpr uint32_t kMaxItems = (1u << 20) - 1;  // of one job
  using Function = void (*)(const void* context, uint32_t index, unsigned worker);

  void run_job(Function function, const void* context, uint32_t count);
  bool run_one(unsigned worker);
  void work(unsigned worker);
  void park();

  // Written by the caller while no item is open, read by workers that hold an item.
  Function function_ = nullptr;
  const void* context_ = nullptr;

  // Job number (24 bits), count of items (20), next item (20). One word, so that an item is only ever taken from the
  // job whose count was read.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> finished_{0};
  std::atomic<bool> caller_parked_{false};
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace dyn::native

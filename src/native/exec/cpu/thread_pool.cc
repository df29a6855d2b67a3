#include "native/exec/cpu/thread_pool.h"

#include <fmt/format.h>

#include "base/threads.h"

namespace dyn::native {
namespace {

constexpr unsigned kCountShift = 20;
constexpr unsigned kJobShift = 40;
constexpr uint64_t kFieldMask = (1u << 20) - 1;

bool has_item(uint64_t ticket) {
  return (ticket & kFieldMask) < ((ticket >> kCountShift) & kFieldMask);
}

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Spins until `done()` or for kSpin; true when done. The clock is read once in a while only.
template <class Done>
bool spin_until(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + ThreadPool::kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause_cpu();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(unsigned threads) {
  for (unsigned worker = 1; worker < threads; ++worker) {
    workers_.emplace_back([this, worker] {
      set_thread_name(fmt::format("compute-{}", worker));
      work(worker);
    });
  }
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  ++wake_;
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_job(Function function, const void* context, uint32_t count) {
  function_ = function;
  context_ = context;
  finished_.store(0, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> kJobShift) + 1;
  ticket_ = (job << kJobShift) | (uint64_t{count} << kCountShift);
  // Sequentially consistent on both sides: either the workers see the ticket or we see that they sleep.
  if (sleepers_ != 0) {
    ++wake_;
    wake_.notify_all();
  }
  while (run_one(0)) {
  }
  if (spin_until([&] { return finished_.load(std::memory_order_acquire) == count; })) return;
  caller_parked_ = true;
  for (uint32_t seen = finished_; seen != count; seen = finished_) finished_.wait(seen);
  caller_parked_ = false;
}

// Takes one item of the present job and runs it; false when there is none.
bool ThreadPool::run_one(unsigned worker) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if (!has_item(ticket)) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire));
  // The job cannot end, nor the next one begin, before this item is counted: the members are ours to read.
  function_(context_, static_cast<uint32_t>(ticket & kFieldMask), worker);
  ++finished_;
  if (caller_parked_) finished_.notify_one();
  return true;
}

void ThreadPool::work(unsigned worker) {
  while (!stop_.load(std::memory_order_relaxed)) {
    if (run_one(worker)) continue;
    if (!spin_until([&] {
          return has_item(ticket_.load(std::memory_order_relaxed)) || stop_.load(std::memory_order_relaxed);
        })) {
      park();
    }
  }
}

void ThreadPool::park() {
  const uint32_t seen = wake_;
  ++sleepers_;
  if (!has_item(ticket_) && !stop_) wake_.wait(seen);
  --sleepers_;
}

}  // namespace dyn::native

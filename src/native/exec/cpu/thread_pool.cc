#include "native/exec/cpu/thread_pool.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/threads.h"

namespace dyn::native {
namespace {

constexpr unsigned kEndShift = 20;
constexpr unsigned kJobShift = 40;
constexpr uint64_t kFieldMask = (1u << 20) - 1;

bool has_item(uint64_t ticket) {
  return (ticket & kFieldMask) < ((ticket >> kEndShift) & kFieldMask);
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

ThreadPool::ThreadPool(unsigned threads) : ThreadPool(std::vector<ThreadPlace>(threads)) {}

ThreadPool::ThreadPool(const std::vector<ThreadPlace>& places)
    : shares_(std::max<size_t>(1, places.empty() ? 0 : places.back().node + 1)) {
  for (const ThreadPlace& place : places) node_of_.push_back(place.node);
  if (node_of_.empty()) node_of_.push_back(0);
  for (const unsigned node : node_of_) {
    for (unsigned n = node; n < nodes(); ++n) ++shares_[n].workers;
  }
  for (unsigned worker = 1; worker < size(); ++worker) {
    workers_.emplace_back([this, worker, cpus = places[worker].cpus] {
      set_thread_name(fmt::format("compute-{}", worker));
      if (!cpus.empty()) pin_thread(cpus);  // a wish: the processors may have been taken away meanwhile
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
  ++job_;
  uint64_t begin = 0;
  for (NodeShare& share : shares_) {
    share.ticket = (job_ << kJobShift) | (uint64_t{share.end} << kEndShift) | begin;
    begin = share.end;
  }
  // Sequentially consistent on both sides: either the workers see the tickets or we see that they sleep.
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

ThreadPool::Share ThreadPool::share_of(uint64_t index, uint64_t count) const {
  for (unsigned node = 0; node + 1 < nodes(); ++node) {
    if (const uint64_t end = count * shares_[node].workers / size(); index < end) return {.node = node, .end = end};
  }
  return {.node = nodes() - 1, .end = count};
}

bool ThreadPool::any_item() const {
  return std::ranges::any_of(shares_, [](const NodeShare& share) { return has_item(share.ticket); });
}

// Takes one item of the present job, of the worker's own node if there is one, and runs it; false when there is none.
bool ThreadPool::run_one(unsigned worker) {
  const unsigned own = node_of_[worker];
  // Others are helped within a job whose own share is seen to be empty, not in the next one that just begins.
  uint64_t job = 0;
  for (unsigned i = 0; i < nodes(); ++i) {
    const unsigned node = own + i < nodes() ? own + i : own + i - nodes();
    if (run_one_of(shares_[node], /*own=*/i == 0, job, worker)) return true;
  }
  return false;
}

// `job`: of the worker's own node what was seen there, of others the only one to take from.
bool ThreadPool::run_one_of(NodeShare& share, bool own, uint64_t& job, unsigned worker) {
  uint64_t ticket = share.ticket.load(std::memory_order_acquire);
  do {
    if (own) job = ticket >> kJobShift;
    if (!has_item(ticket) || ticket >> kJobShift != job) return false;
  } while (
      !share.ticket.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire));
  // The job cannot end, nor the next one begin, before this item is counted: the members are ours to read.
  function_(context_, static_cast<uint32_t>(ticket & kFieldMask), worker);
  ++finished_;
  if (caller_parked_) finished_.notify_one();
  return true;
}

void ThreadPool::work(unsigned worker) {
  while (!stop_.load(std::memory_order_relaxed)) {
    if (run_one(worker)) continue;
    if (!spin_until([&] { return any_item() || stop_.load(std::memory_order_relaxed); })) {
      park();
    }
  }
}

void ThreadPool::park() {
  const uint32_t seen = wake_;
  ++sleepers_;
  if (!any_item() && !stop_) wake_.wait(seen);
  --sleepers_;
}

}  // namespace dyn::native

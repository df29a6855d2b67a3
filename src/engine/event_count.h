// EventCount: sleep until a condition on atomics holds, without a lock on the side that makes it true.
//
//   // waiter                                              // notifier
//   events.wait_until(deadline, [&] { return !queue.empty(); });   queue.push(x);
//                                                           events.notify();
//
// notify() costs one load while nobody waits. The condition must read, and the notifier must write, its atomics with
// sequential consistency (the default of std::atomic): that is what makes "check, then sleep" free of lost wake-ups.
// Thread rules: everything from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace dyn::engine {

class EventCount {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  // True when `ready()` holds, false when the deadline passed first. TimePoint::max() waits for ever.
  template <class Ready>
  bool wait_until(TimePoint deadline, Ready ready) {
    for (;;) {
      const uint32_t epoch = epoch_.load();
      waiters_.fetch_add(1);
      const bool done = ready();
      const bool expired = !done && !sleep(epoch, deadline);
      waiters_.fetch_sub(1);
      if (done) return true;
      if (expired) return ready();
    }
  }

  // Call after the condition was made true.
  void notify() noexcept {
    if (waiters_.load() == 0) return;
    epoch_.fetch_add(1);
    wake_all();
  }

 private:
  // Sleeps while epoch_ is still `epoch`; false at the deadline. May wake for no reason.
  bool sleep(uint32_t epoch, TimePoint deadline) noexcept;
  void wake_all() noexcept;

  std::atomic<uint32_t> epoch_{0};
  std::atomic<uint32_t> waiters_{0};
};

}  // namespace dyn::engine

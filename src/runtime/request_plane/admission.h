// Admission: how many requests run at once, and how many wait for their turn in a first-in-first-out queue.
//
//   Admission admission({.running = 64, .queued = 16, .queued_bytes = 1 << 30});
//   switch (admission.enter(waiter, payload_bytes)) {
//     case Admission::Verdict::kRun: ...       // a slot is taken: release() when done
//     case Admission::Verdict::kQueued: ...    // waiter->on_slot() will be called with a slot, or leave_queue() first
//     case Admission::Verdict::kFull: ...
//   }
//
// A slot that is released goes to the waiter at the head of the queue, so nobody overtakes. Ownership: the queue holds
// its waiters. Thread rules: safe from any thread; on_slot() is called on the releasing thread, without a lock held.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace dyn::runtime {

struct AdmissionLimits {
  size_t running = 10'000;
  size_t queued = 40'000;
  size_t queued_bytes = size_t{1} << 30;  // of payloads that wait
};

class Admission {
 public:
  class Waiter {
   public:
    virtual ~Waiter() = default;
    virtual void on_slot() = 0;
  };
  enum class Verdict : unsigned char { kRun, kQueued, kFull };

  explicit Admission(const AdmissionLimits& limits) : limits_(limits) {}

  Verdict enter(std::shared_ptr<Waiter> waiter, size_t bytes);
  // True when the waiter still waited; it will not be called. False: on_slot() was or is being called.
  bool leave_queue(const Waiter* waiter);
  void release();

  [[nodiscard]] const AdmissionLimits& limits() const { return limits_; }
  [[nodiscard]] size_t running() const;
  [[nodiscard]] size_t queued() const;

 private:
  struct Entry {
    std::shared_ptr<Waiter> waiter;
    size_t bytes;
  };
  using Queue = std::list<Entry>;

  const AdmissionLimits limits_;
  mutable std::mutex mutex_;
  size_t running_ = 0;
  size_t queued_bytes_ = 0;
  Queue queue_;
  std::unordered_map<const Waiter*, Queue::iterator> positions_;
};

}  // namespace dyn::runtime

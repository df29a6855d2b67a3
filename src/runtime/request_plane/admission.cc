#include "runtime/request_plane/admission.h"

#include <cassert>

namespace dyn::runtime {

Admission::Verdict Admission::enter(std::shared_ptr<Waiter> waiter, size_t bytes) {
  std::lock_guard lock(mutex_);
  if (running_ < limits_.running) {
    ++running_;
    return Verdict::kRun;
  }
  if (queue_.size() >= limits_.queued || bytes > limits_.queued_bytes - queued_bytes_) return Verdict::kFull;
  const Waiter* key = waiter.get();
  queue_.push_back({std::move(waiter), bytes});
  positions_.emplace(key, std::prev(queue_.end()));
  queued_bytes_ += bytes;
  return Verdict::kQueued;
}

bool Admission::leave_queue(const Waiter* waiter) {
  std::shared_ptr<Waiter> keep_alive;  // declared first: its last reference must not go under the lock
  std::lock_guard lock(mutex_);
  const auto found = positions_.find(waiter);
  if (found == positions_.end()) return false;
  keep_alive = std::move(found->second->waiter);
  queued_bytes_ -= found->second->bytes;
  queue_.erase(found->second);
  positions_.erase(found);
  return true;
}

void Admission::release() {
  std::shared_ptr<Waiter> next;
  {
    std::lock_guard lock(mutex_);
    assert(running_ > 0);
    if (queue_.empty()) {
      --running_;
      return;
    }
    // The slot changes hands: `running_` stays.
    next = std::move(queue_.front().waiter);
    queued_bytes_ -= queue_.front().bytes;
    positions_.erase(next.get());
    queue_.pop_front();
  }
  next->on_slot();
}

size_t Admission::running() const {
  std::lock_guard lock(mutex_);
  return running_;
}

size_t Admission::queued() const {
  std::lock_guard lock(mutex_);
  return queue_.size();
}

}  // namespace dyn::runtime

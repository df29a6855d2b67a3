#include "engine/event_count.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <ctime>

namespace dyn::engine {

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "the kernel waits on the atomic's own storage");

bool EventCount::sleep(uint32_t epoch, TimePoint deadline) noexcept {
  timespec until{};
  timespec* limit = nullptr;
  if (deadline != TimePoint::max()) {
    // steady_clock is CLOCK_MONOTONIC, the clock of an absolute FUTEX_WAIT_BITSET.
    const auto since_boot = deadline.time_since_epoch();
    const auto seconds = std::chrono::floor<std::chrono::seconds>(since_boot);
    if (seconds.count() < 0) return false;
    until.tv_sec = static_cast<time_t>(seconds.count());
    until.tv_nsec = static_cast<long>(std::chrono::nanoseconds(since_boot - seconds).count());
    limit = &until;
  }
  const long status = syscall(SYS_futex, reinterpret_cast<uint32_t*>(&epoch_), FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG,
                              epoch, limit, nullptr, FUTEX_BITSET_MATCH_ANY);
  return !(status == -1 && errno == ETIMEDOUT);
}

void EventCount::wake_all() noexcept {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&epoch_), FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, nullptr, nullptr,
          0);
}

}  // namespace dyn::engine

// Canary: proves now and then that an endpoint still answers, by a probe of its own when no traffic shows it.
//
//   Canary canary(options, health);
//   auto watch = canary.watch("generate", [&](Canary::Done done) { start_probe(engine, std::move(done)); });
//   ...
//   watch->activity();      // an item that is no error went out: once per batch is enough
//
// The first probe goes out at once, further ones after `wait` without activity. No success within `timeout`: the
// endpoint is not ready, until a probe succeeds or traffic flows again. Switched off, it does nothing.
// Ownership: the caller owns the canary; `health` outlives it. A probe's `done` may be called at any time, from any
// thread, even after the canary is gone. Thread rules: probes run one at a time on the canary's thread and must not
// block; activity() is safe from any thread, takes no lock while the endpoint is ready and costs a few nanoseconds.
// Facts: lib/runtime/src/health_check.rs of Dynamo 0.8 ... 1.6.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "base/result.h"
#include "runtime/health.h"

namespace dyn::runtime {

struct CanaryOptions {
  bool enabled = false;                      // DYN_HEALTH_CHECK_ENABLED
  std::chrono::milliseconds wait{10'000};    // DYN_CANARY_WAIT_TIME, seconds
  std::chrono::milliseconds timeout{3'000};  // DYN_HEALTH_CHECK_REQUEST_TIMEOUT, seconds
};

// When to probe one endpoint: the rule without threads and clocks. Thread rules: one thread at a time.
class CanarySchedule {
 public:
  using Time = std::chrono::steady_clock::time_point;
  enum class Action : uint8_t { kNothing, kProbe, kTimedOut };

  CanarySchedule(const CanaryOptions& options, Time now) : options_(options), due_(now), quiet_since_(now) {}

  // What to do at `now`; `last_activity` is when an item last went out.
  Action poll(Time now, Time last_activity);
  // The probe ended, well or not, before it timed out. False: it had timed out already.
  bool ended(uint64_t probe, Time now);

  // When to poll next, unless activity comes in between.
  [[nodiscard]] Time due() const { return due_; }
  // Number of the probe that poll() asked for last.
  [[nodiscard]] uint64_t probe() const { return probe_; }

 private:
  CanaryOptions options_;
  Time due_;
  Time quiet_since_;
  Time probe_start_;
  uint64_t probe_ = 0;
  bool probing_ = false;
};

class Canary {
 public:
  using Done = std::function<void(Result<void>)>;
  using Probe = std::function<void(Done)>;

  class Watch {
   public:
    void activity() noexcept;

   private:
    friend class Canary;
    Watch(Health& health, std::string endpoint, bool enabled);
    void set_ready(bool ready);

    Health& health_;
    const std::string endpoint_;
    const bool enabled_;
    std::mutex mutex_;                           // ready_ and Health change together
    std::atomic<int64_t> last_activity_ns_ = 0;  // of the steady clock
    std::atomic<bool> ready_ = false;            // what Health was told last
  };

  Canary(CanaryOptions options, Health& health);
  ~Canary();
  Canary(const Canary&) = delete;
  Canary& operator=(const Canary&) = delete;

  // The watch may be used until the health object dies.
  std::shared_ptr<Watch> watch(const std::string& endpoint, Probe probe);
  // No probe of this endpoint runs once it returns. Not from within a probe.
  void unwatch(const std::string& endpoint);
  // No probe runs once it returns. Idempotent; also done by the destructor.
  void stop();

 private:
  struct Entry;
  struct State;
  static void run(const std::shared_ptr<State>& state);
  std::shared_ptr<State> state_;
};

}  // namespace dyn::runtime

// Shutdown: the ordered end of a process, as named steps of which each has a limit.
//
//   Shutdown shutdown(graceful_steps(options, {.become_not_ready = ..., .delete_instances = ..., ...}));
//   const auto outcome = shutdown.run({.text = "SIGTERM"});      // from another thread: shutdown.hurry()
//   if (!outcome.complete) end_process(outcome.exit_code);       // a step hangs: do not wait for its thread
//   return outcome.exit_code;
//
// The order serves the frontends of every release: not ready, instance records gone, cards gone, then a grace period in
// which requests still arrive and are served, then no new requests, then the running streams end or, after a limit, are
// cut without their final frame, so that the frontend migrates them; at last the stores close. A step that exceeds its
// limit is left behind on its thread and the next one begins: a hanging store must not keep streams from ending.
// Ownership: what the steps touch must outlive run(), and if it was incomplete, the process. Thread rules: run() once,
// from the control thread; each step runs on a thread of its own, one after the other; hurry() from any thread.
// Facts: components/src/dynamo/common/utils/graceful_shutdown.py and lib/runtime/src/runtime.rs of Dynamo 0.8 ... 1.6.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace dyn::runtime {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFatal = 1;
// What a step gets in a hurry, and beyond its limit before it is left behind.
inline constexpr std::chrono::milliseconds kHurriedLimit{2'000};

struct ShutdownOptions {
  std::chrono::milliseconds grace_period{5'000};   // DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS; negative counts as 0
  std::chrono::milliseconds drain_limit{900'000};  // DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS
  std::chrono::milliseconds step_limit{10'000};    // for each step that only has to do something
};

struct ShutdownReason {
  std::string text;    // "SIGTERM", "lost the etcd lease", "the engine died: ..."
  bool fatal = false;  // nothing can be served any more: no grace period, no draining, exit code kExitFatal
};

// What the process does in each step. An empty function is a step without work.
struct ShutdownActions {
  std::function<void()> become_not_ready;
  std::function<void()> delete_instances;
  std::function<void()> delete_cards;  // and event records
  std::function<void()> stop_accepting;
  std::function<bool(std::chrono::milliseconds limit)> drain;  // waits for the streams; true when none is left
  std::function<void()> end_streams;                           // cuts the rest, without final frames
  std::function<void()> close_stores;
};

// The time the steps go by; replaced in tests.
class ShutdownClock {
 public:
  using Time = std::chrono::steady_clock::time_point;
  virtual ~ShutdownClock() = default;
  virtual Time now() = 0;
  // Returns at `until`, after a notification, or spuriously.
  virtual void wait(std::unique_lock<std::mutex>& lock, std::condition_variable& changed, Time until) = 0;
  static ShutdownClock& real();
};

// What a step sees of its sequence.
class ShutdownProgress {
 public:
  // Somebody is in a hurry, or nothing can be served any more: waiting is pointless.
  [[nodiscard]] bool hurried() const;
  [[nodiscard]] std::chrono::milliseconds left() const;  // until this step's limit, never negative
  void wait_until_limit() const;                         // or until hurried()

 private:
  friend class Shutdown;
  struct State;
  explicit ShutdownProgress(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
  ShutdownClock::Time limit_;
};

struct ShutdownStep {
  std::string name;
  std::chrono::milliseconds limit;
  std::function<void(const ShutdownProgress&)> run;
};

std::vector<ShutdownStep> graceful_steps(const ShutdownOptions& options, ShutdownActions actions);

class Shutdown {
 public:
  explicit Shutdown(std::vector<ShutdownStep> steps, ShutdownClock& clock = ShutdownClock::real());
  ~Shutdown();
  Shutdown(const Shutdown&) = delete;
  Shutdown& operator=(const Shutdown&) = delete;

  struct Outcome {
    int exit_code = kExitOk;  // kExitFatal for a fatal reason, and when incomplete
    bool complete = true;     // no step was left behind
  };
  Outcome run(const ShutdownReason& reason);

  // Ends waiting steps now and leaves the others kHurriedLimit. Before run(): run() hurries from its start.
  void hurry();

 private:
  std::vector<ShutdownStep> steps_;
  std::shared_ptr<ShutdownProgress::State> state_;
};

// Ends the process at once, without destructors: other threads may still run.
[[noreturn]] void end_process(int exit_code);

}  // namespace dyn::runtime

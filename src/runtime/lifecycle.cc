#include "runtime/lifecycle.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/threads.h"

namespace dyn::runtime {
namespace {

constexpr char kLog[] = "lifecycle";
// A drain is asked in slices, so that a second signal is not waited out.
constexpr std::chrono::milliseconds kDrainSlice(200);

using std::chrono::milliseconds;

class RealClock final : public ShutdownClock {
 public:
  Time now() override { return std::chrono::steady_clock::now(); }
  void wait(std::unique_lock<std::mutex>& lock, std::condition_variable& changed, Time until) override {
    changed.wait_until(lock, until);
  }
};

}  // namespace

ShutdownClock& ShutdownClock::real() {
  static RealClock clock;
  return clock;
}

// Shared with the threads of steps that were left behind.
struct ShutdownProgress::State {
  explicit State(ShutdownClock& with) : clock(with) {}
  ShutdownClock& clock;
  std::mutex mutex;
  std::condition_variable changed;
  bool hurried = false;
  ShutdownClock::Time hurried_since;
};

bool ShutdownProgress::hurried() const {
  const std::lock_guard lock(state_->mutex);
  return state_->hurried;
}

milliseconds ShutdownProgress::left() const {
  const std::lock_guard lock(state_->mutex);
  return std::max(std::chrono::ceil<milliseconds>(limit_ - state_->clock.now()), milliseconds(0));
}

void ShutdownProgress::wait_until_limit() const {
  std::unique_lock lock(state_->mutex);
  while (!state_->hurried && state_->clock.now() < limit_) state_->clock.wait(lock, state_->changed, limit_);
}

std::vector<ShutdownStep> graceful_steps(const ShutdownOptions& options, ShutdownActions actions) {
  std::vector<ShutdownStep> steps;
  const auto add = [&](const char* name, std::function<void()> action) {
    if (!action) return;
    steps.push_back({name, options.step_limit, [action = std::move(action)](const ShutdownProgress&) { action(); }});
  };
  add("become not ready", std::move(actions.become_not_ready));
  add("delete instance records", std::move(actions.delete_instances));
  add("delete model cards", std::move(actions.delete_cards));
  steps.push_back({"grace period", std::max(options.grace_period, milliseconds(0)),
                   [](const ShutdownProgress& progress) { progress.wait_until_limit(); }});
  add("stop accepting requests", std::move(actions.stop_accepting));
  if (actions.drain) {
    steps.push_back({"drain streams", std::max(options.drain_limit, milliseconds(0)),
                     [drain = std::move(actions.drain)](const ShutdownProgress& progress) {
                       while (!progress.hurried() && progress.left().count() > 0) {
                         if (drain(std::min(progress.left(), kDrainSlice))) return;
                       }
                     }});
  }
  add("end the streams that are left", std::move(actions.end_streams));
  add("close the stores", std::move(actions.close_stores));
  return steps;
}

Shutdown::Shutdown(std::vector<ShutdownStep> steps, ShutdownClock& clock)
    : steps_(std::move(steps)), state_(std::make_shared<ShutdownProgress::State>(clock)) {}

Shutdown::~Shutdown() = default;

void Shutdown::hurry() {
  const std::lock_guard lock(state_->mutex);
  if (!state_->hurried) state_->hurried_since = state_->clock.now();
  state_->hurried = true;
  state_->changed.notify_all();
}

Shutdown::Outcome Shutdown::run(const ShutdownReason& reason) {
  Outcome outcome;
  outcome.exit_code = reason.fatal ? kExitFatal : kExitOk;
  ShutdownClock& clock = state_->clock;
  if (reason.fatal) {
    DYN_ERROR(kLog, "shutting down: {}", reason.text);
    hurry();
  } else {
    DYN_INFO(kLog, "shutting down: {}", reason.text);
  }
  for (const auto& step : steps_) {
    DYN_INFO(kLog, "shutdown: {}", step.name);
    ShutdownProgress progress(state_);
    const auto begin = clock.now();
    progress.limit_ = begin + step.limit;
    const auto done_flag = std::make_shared<bool>(false);  // guarded by the state's mutex
    std::thread thread([name = step.name, run = step.run, progress, done_flag, state = state_]() mutable {
      set_thread_name("shutdown");
      try {
        run(progress);
      } catch (const std::exception& failure) {
        DYN_ERROR(kLog, "shutdown: {} failed: {}", name, failure.what());
      }
      run = nullptr;  // what it holds goes before the step counts as done
      const std::lock_guard lock(state->mutex);
      *done_flag = true;
      state->changed.notify_all();
    });
    std::unique_lock lock(state_->mutex);
    // A step that watches its limit ends about then; only one that does not is left behind.
    auto end = progress.limit_ + kHurriedLimit;
    while (!*done_flag && clock.now() < end) {
      if (state_->hurried) end = std::min(end, std::max(begin, state_->hurried_since) + kHurriedLimit);
      clock.wait(lock, state_->changed, end);
    }
    const bool done = *done_flag;
    lock.unlock();
    if (done) {
      thread.join();
    } else {
      thread.detach();
      outcome.exit_code = kExitFatal;
      outcome.complete = false;
      DYN_ERROR(kLog, "shutdown: '{}' hangs and is left behind", step.name);
    }
  }
  DYN_INFO(kLog, "shutdown complete, exit code {}", outcome.exit_code);
  return outcome;
}

void end_process(int exit_code) {
  std::fflush(nullptr);
  ::_exit(exit_code);
}

}  // namespace dyn::runtime

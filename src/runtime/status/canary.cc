#include "runtime/status/canary.h"

#include <ctime>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/threads.h"

namespace dyn::runtime {
namespace {

constexpr char kLog[] = "canary";
using Clock = std::chrono::steady_clock;

// The clock of steady_clock, some milliseconds coarse and several times cheaper.
int64_t coarse_now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

CanarySchedule::Action CanarySchedule::poll(Time now, Time last_activity) {
  if (probing_) {
    if (now < due_) return Action::kNothing;
    probing_ = false;
    quiet_since_ = std::max(now, last_activity);
    due_ = quiet_since_ + options_.wait;
    // Traffic that flows tells more than a probe that is late.
    return last_activity > probe_start_ ? Action::kNothing : Action::kTimedOut;
  }
  if (last_activity > quiet_since_) {
    quiet_since_ = last_activity;
    due_ = last_activity + options_.wait;
  }
  if (now < due_) return Action::kNothing;
  probing_ = true;
  ++probe_;
  probe_start_ = now;
  due_ = now + options_.timeout;
  return Action::kProbe;
}

bool CanarySchedule::ended(uint64_t probe, Time now) {
  if (!probing_ || probe != probe_) return false;
  probing_ = false;
  quiet_since_ = now;
  due_ = now + options_.wait;
  return true;
}

Canary::Watch::Watch(Health& health, std::string endpoint, bool enabled)
    : health_(health), endpoint_(std::move(endpoint)), enabled_(enabled) {}

void Canary::Watch::activity() noexcept {
  if (!enabled_) return;
  last_activity_ns_.store(coarse_now_ns(), std::memory_order_relaxed);
  if (!ready_.load(std::memory_order_relaxed)) set_ready(true);
}

void Canary::Watch::set_ready(bool ready) {
  const std::lock_guard lock(mutex_);
  ready_.store(ready, std::memory_order_relaxed);
  health_.set_endpoint(endpoint_, ready);
}

struct Canary::Entry {
  Entry(const CanaryOptions& options, std::shared_ptr<Watch> on, Probe with)
      : watch(std::move(on)), probe(std::move(with)), schedule(options, Clock::now()) {}
  const std::shared_ptr<Watch> watch;
  const Probe probe;
  CanarySchedule schedule;
  bool said_bad = false;  // one log line when it goes wrong, one when it is well again
};

// Shared with the `done` functions, which may outlive the canary.
struct Canary::State {
  State(CanaryOptions with, Health& about) : options(with), health(about) {}

  const CanaryOptions options;
  Health& health;  // not touched once stopped
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, std::shared_ptr<Entry>> entries;
  std::shared_ptr<Entry> probing;  // whose probe function runs now
  bool stopped = false;
  std::thread thread;

  void judge(Entry& entry, const Result<void>& result) {
    entry.watch->set_ready(result.ok());
    if (result.ok() && entry.said_bad) {
      DYN_INFO(kLog, "endpoint {} answers again", entry.watch->endpoint_);
    } else if (!result.ok() && !entry.said_bad) {
      DYN_ERROR(kLog, "endpoint {} failed its health check and is not ready: {}", entry.watch->endpoint_,
                result.error().message);
    }
    entry.said_bad = !result.ok();
  }
};

Canary::Canary(CanaryOptions options, Health& health) : state_(std::make_shared<State>(options, health)) {
  if (options.enabled) state_->thread = std::thread([state = state_] { run(state); });
}

Canary::~Canary() {
  stop();
}

std::shared_ptr<Canary::Watch> Canary::watch(const std::string& endpoint, Probe probe) {
  const std::shared_ptr<Watch> watch(new Watch(state_->health, endpoint, state_->options.enabled));
  if (!state_->options.enabled) return watch;
  const std::lock_guard lock(state_->mutex);
  state_->entries[endpoint] = std::make_shared<Entry>(state_->options, watch, std::move(probe));
  state_->changed.notify_all();
  return watch;
}

void Canary::unwatch(const std::string& endpoint) {
  std::unique_lock lock(state_->mutex);
  const auto at = state_->entries.find(endpoint);
  if (at == state_->entries.end()) return;
  const auto entry = at->second;
  state_->entries.erase(at);
  state_->changed.wait(lock, [&] { return state_->probing != entry; });
}

void Canary::stop() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopped = true;
    state_->entries.clear();
    state_->changed.notify_all();
  }
  if (state_->thread.joinable()) state_->thread.join();
}

void Canary::run(const std::shared_ptr<State>& state) {
  set_thread_name("canary");
  std::unique_lock lock(state->mutex);
  while (!state->stopped) {
    const auto now = Clock::now();
    std::shared_ptr<Entry> to_probe;
    auto due = Clock::time_point::max();
    for (const auto& [name, entry] : state->entries) {
      const CanarySchedule::Time last_activity{
          std::chrono::nanoseconds(entry->watch->last_activity_ns_.load(std::memory_order_relaxed))};
      const auto action = entry->schedule.poll(now, last_activity);
      if (action == CanarySchedule::Action::kTimedOut) {
        state->judge(*entry,
                     Error{Code::kDeadline, fmt::format("no answer within {} ms; the engine hangs or is overloaded",
                                                        state->options.timeout.count())});
      } else if (action == CanarySchedule::Action::kProbe) {
        to_probe = entry;
        break;  // the others are looked at right after
      }
      due = std::min(due, entry->schedule.due());
    }
    if (!to_probe) {
      if (due == Clock::time_point::max()) {
        state->changed.wait(lock);
      } else {
        state->changed.wait_until(lock, due);
      }
      continue;
    }

    const auto done = [weak_state = std::weak_ptr(state), weak_entry = std::weak_ptr(to_probe),
                       probe = to_probe->schedule.probe()](const Result<void>& result) {
      const auto alive = weak_state.lock();
      const auto entry = weak_entry.lock();
      if (!alive || !entry) return;
      const std::lock_guard guard(alive->mutex);
      const auto at = alive->entries.find(entry->watch->endpoint_);
      if (alive->stopped || at == alive->entries.end() || at->second != entry) return;
      if (entry->schedule.ended(probe, Clock::now())) alive->judge(*entry, result);
      alive->changed.notify_all();
    };
    state->probing = to_probe;
    lock.unlock();
    try {
      to_probe->probe(done);
    } catch (const std::exception& failure) {
      done(internal_error(std::string("the probe threw: ") + failure.what()));
    }
    lock.lock();
    state->probing = nullptr;
    state->changed.notify_all();
  }
}

}  // namespace dyn::runtime

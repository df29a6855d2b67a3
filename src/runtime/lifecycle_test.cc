#include "runtime/lifecycle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <future>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include "base/test_support.h"

namespace dyn::runtime {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;

// Time goes on only by advance().
class FakeClock final : public ShutdownClock {
 public:
  Time now() override { return Time(milliseconds(now_ms_.load())); }
  void wait(std::unique_lock<std::mutex>& lock, std::condition_variable& changed, Time until) override {
    {
      const std::lock_guard guard(mutex_);
      waited_for_.insert(until);
    }
    changed.wait_for(lock, milliseconds(1));
  }
  void advance(milliseconds by) { now_ms_ += by.count(); }
  // Whether somebody has waited for the time that is `ahead` from now.
  bool waits(milliseconds ahead) {
    const std::lock_guard guard(mutex_);
    return waited_for_.contains(now() + ahead);
  }

 private:
  std::mutex mutex_;
  std::set<Time> waited_for_;
  std::atomic<int64_t> now_ms_ = 1'000'000;
};

class ShutdownTest : public ::testing::Test {
 protected:
  void note(const std::string& what) {
    const std::lock_guard lock(mutex_);
    log_.push_back(what);
  }
  std::vector<std::string> log() {
    const std::lock_guard lock(mutex_);
    return log_;
  }
  bool has(const std::string& what) {
    const auto lines = log();
    return std::find(lines.begin(), lines.end(), what) != lines.end();
  }
  ShutdownActions actions() {
    ShutdownActions actions;
    actions.become_not_ready = [this] { note("not ready"); };
    actions.delete_instances = [this] { note("instances"); };
    actions.delete_cards = [this] { note("cards"); };
    actions.stop_accepting = [this] { note("stop"); };
    actions.drain = [this](milliseconds) {
      const bool none_left = !streams_;
      if (none_left) note("drained");
      return none_left;
    };
    actions.end_streams = [this] { note("cut"); };
    actions.close_stores = [this] { note("stores"); };
    return actions;
  }
  // Runs in the background; get() waits.
  std::future<Shutdown::Outcome> run(Shutdown& shutdown, ShutdownReason reason = {"SIGTERM", false}) {
    return std::async(std::launch::async, [&shutdown, reason] { return shutdown.run(reason); });
  }

  FakeClock clock_;
  ShutdownOptions options_{.grace_period = seconds(5), .drain_limit = seconds(900), .step_limit = seconds(10)};
  std::atomic<bool> streams_ = true;  // some are running
  std::mutex mutex_;
  std::vector<std::string> log_;
};

TEST_F(ShutdownTest, TheOrderWithGracePeriodAndDraining) {
  Shutdown shutdown(graceful_steps(options_, actions()), clock_);
  auto outcome = run(shutdown);
  EXPECT_TRUE(eventually([&] { return clock_.waits(options_.grace_period); }));
  clock_.advance(milliseconds(4999));
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_THAT(log(), ElementsAre("not ready", "instances", "cards")) << "requests are still served";
  clock_.advance(milliseconds(1));
  EXPECT_TRUE(eventually([&] { return has("stop"); }));
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_FALSE(has("cut"));
  streams_ = false;
  const auto result = outcome.get();
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_TRUE(result.complete);
  EXPECT_THAT(log(), ElementsAre("not ready", "instances", "cards", "stop", "drained", "cut", "stores"));
}

TEST_F(ShutdownTest, StreamsThatDoNotEndAreCutAtTheLimit) {
  options_.grace_period = seconds(-1);
  Shutdown shutdown(graceful_steps(options_, actions()), clock_);
  auto outcome = run(shutdown);
  EXPECT_TRUE(eventually([&] { return clock_.waits(options_.drain_limit + kHurriedLimit); }));
  clock_.advance(seconds(899));
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_FALSE(has("cut"));
  clock_.advance(seconds(2));
  EXPECT_TRUE(outcome.get().complete);
  EXPECT_THAT(log(), ElementsAre("not ready", "instances", "cards", "stop", "cut", "stores"));
}

TEST_F(ShutdownTest, HurryEndsTheGracePeriodAndTheDraining) {
  Shutdown shutdown(graceful_steps(options_, actions()), clock_);
  auto outcome = run(shutdown);
  EXPECT_TRUE(eventually([&] { return has("cards"); }));
  shutdown.hurry();
  EXPECT_EQ(outcome.get().exit_code, 0);
  EXPECT_THAT(log(), ElementsAre("not ready", "instances", "cards", "stop", "cut", "stores"));
}

TEST_F(ShutdownTest, HurryWhileDraining) {
  options_.grace_period = milliseconds(0);
  Shutdown shutdown(graceful_steps(options_, actions()), clock_);
  auto outcome = run(shutdown);
  EXPECT_TRUE(eventually([&] { return has("stop"); }));
  shutdown.hurry();
  EXPECT_TRUE(outcome.get().complete);
  EXPECT_TRUE(has("cut"));
}

TEST_F(ShutdownTest, AFatalReasonWaitsForNothingAndExitsWith1) {
  Shutdown shutdown(graceful_steps(options_, actions()), clock_);
  const auto result = shutdown.run({"the engine died", true});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_TRUE(result.complete);
  EXPECT_THAT(log(), ElementsAre("not ready", "instances", "cards", "stop", "cut", "stores"));
}

TEST_F(ShutdownTest, AHangingStepIsLeftBehind) {
  auto hanging = actions();
  const auto released = std::make_shared<std::promise<void>>();
  const auto ended = std::make_shared<std::promise<void>>();
  hanging.delete_instances = [this, released, ended] {
    note("hangs");
    released->get_future().wait();
    ended->set_value();
  };
  streams_ = false;
  options_.grace_period = milliseconds(0);
  Shutdown shutdown(graceful_steps(options_, hanging), clock_);
  auto outcome = run(shutdown);
  EXPECT_TRUE(eventually([&] { return has("hangs"); }));
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_FALSE(has("cards"));
  clock_.advance(options_.step_limit + kHurriedLimit);
  const auto result = outcome.get();
  EXPECT_FALSE(result.complete);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(log(), ElementsAre("not ready", "hangs", "cards", "stop", "drained", "cut", "stores"));
  released->set_value();
  ended->get_future().wait();
}

TEST_F(ShutdownTest, InAHurryAHangingStepGetsLittle) {
  auto hanging = actions();
  const auto released = std::make_shared<std::promise<void>>();
  const auto ended = std::make_shared<std::promise<void>>();
  hanging.delete_instances = [this, released, ended] {
    note("hangs");
    released->get_future().wait();
    ended->set_value();
  };
  Shutdown shutdown(graceful_steps(options_, hanging), clock_);
  auto outcome = run(shutdown);
  EXPECT_TRUE(eventually([&] { return has("hangs"); }));
  clock_.advance(seconds(1));
  shutdown.hurry();
  clock_.advance(kHurriedLimit);
  EXPECT_FALSE(outcome.get().complete);
  EXPECT_TRUE(has("stores"));
  released->set_value();
  ended->get_future().wait();
}

TEST_F(ShutdownTest, AStepThatThrowsDoesNotStopTheRest) {
  auto throwing = actions();
  throwing.delete_instances = [] { throw std::runtime_error("store gone"); };
  streams_ = false;
  options_.grace_period = milliseconds(0);
  Shutdown shutdown(graceful_steps(options_, throwing), clock_);
  EXPECT_TRUE(shutdown.run({"SIGTERM", false}).complete);
  EXPECT_TRUE(has("stores"));
}

TEST_F(ShutdownTest, EmptyActionsAreNoSteps) {
  options_.grace_period = milliseconds(0);
  const auto steps = graceful_steps(options_, {});
  ASSERT_EQ(steps.size(), 1U);
  EXPECT_EQ(steps[0].name, "grace period");
  Shutdown shutdown(steps);
  EXPECT_EQ(shutdown.run({"SIGTERM", false}).exit_code, 0);
}

TEST_F(ShutdownTest, TheDrainIsToldWhatIsLeft) {
  std::atomic<int64_t> longest = 0;
  ShutdownActions only_drain;
  only_drain.drain = [&](milliseconds limit) {
    longest = std::max(longest.load(), limit.count());
    clock_.advance(limit);
    return false;
  };
  options_ = {.grace_period = milliseconds(0), .drain_limit = milliseconds(450)};
  Shutdown shutdown(graceful_steps(options_, only_drain), clock_);
  EXPECT_TRUE(shutdown.run({"SIGTERM", false}).complete);
  EXPECT_GT(longest, 0);
  EXPECT_LE(longest, 450);
}

}  // namespace
}  // namespace dyn::runtime

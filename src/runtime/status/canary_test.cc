#include "runtime/status/canary.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/test_support.h"

namespace dyn::runtime {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Action = CanarySchedule::Action;

constexpr CanaryOptions kTenThree{true, seconds(10), seconds(3)};

class CanaryScheduleTest : public ::testing::Test {
 protected:
  static CanarySchedule::Time at(int s) { return CanarySchedule::Time(seconds(1000 + s)); }
  static constexpr CanarySchedule::Time kNever{};
  CanarySchedule schedule_{kTenThree, at(0)};
};

TEST_F(CanaryScheduleTest, ProbesAtOnceThenAfterEachWait) {
  EXPECT_EQ(schedule_.poll(at(0), kNever), Action::kProbe);
  EXPECT_TRUE(schedule_.ended(schedule_.probe(), at(1)));
  EXPECT_EQ(schedule_.due(), at(11));
  EXPECT_EQ(schedule_.poll(at(10), kNever), Action::kNothing);
  EXPECT_EQ(schedule_.poll(at(11), kNever), Action::kProbe);
}

TEST_F(CanaryScheduleTest, ActivityPostponesTheProbe) {
  ASSERT_EQ(schedule_.poll(at(0), kNever), Action::kProbe);
  schedule_.ended(1, at(0));
  for (int s = 10; s < 100; s += 9) EXPECT_EQ(schedule_.poll(at(s), at(s - 1)), Action::kNothing);
  EXPECT_EQ(schedule_.due(), at(90 + 10));
  EXPECT_EQ(schedule_.poll(at(100), at(90)), Action::kProbe);
}

TEST_F(CanaryScheduleTest, AProbeTimesOutOnceAndALateEndCountsForNothing) {
  ASSERT_EQ(schedule_.poll(at(0), kNever), Action::kProbe);
  EXPECT_EQ(schedule_.due(), at(3));
  EXPECT_EQ(schedule_.poll(at(2), kNever), Action::kNothing);
  EXPECT_EQ(schedule_.poll(at(3), kNever), Action::kTimedOut);
  EXPECT_FALSE(schedule_.ended(1, at(4)));
  EXPECT_EQ(schedule_.poll(at(12), kNever), Action::kNothing);
  EXPECT_EQ(schedule_.poll(at(13), kNever), Action::kProbe);
  EXPECT_FALSE(schedule_.ended(1, at(13))) << "the first probe's answer must not end the second";
  EXPECT_TRUE(schedule_.ended(2, at(13)));
  EXPECT_FALSE(schedule_.ended(2, at(13))) << "twice";
}

TEST_F(CanaryScheduleTest, TrafficDuringALateProbeSavesTheEndpoint) {
  ASSERT_EQ(schedule_.poll(at(0), kNever), Action::kProbe);
  EXPECT_EQ(schedule_.poll(at(3), at(2)), Action::kNothing);
  EXPECT_EQ(schedule_.due(), at(13));
}

class CanaryTest : public ::testing::Test {
 protected:
  CanaryTest() { health_.add_endpoint("generate", true); }
  Health health_{{.canary_enabled = true}};
};

TEST_F(CanaryTest, TheFirstSuccessMakesReady) {
  Canary canary({true, hours(1), hours(1)}, health_);
  EXPECT_FALSE(health_.ready());
  std::atomic<int> probes = 0;
  canary.watch("generate", [&](const Canary::Done& done) {
    ++probes;
    done({});
  });
  EXPECT_TRUE(eventually([&] { return health_.ready(); }));
  EXPECT_EQ(probes, 1);
}

TEST_F(CanaryTest, FailureHangAndRecovery) {
  Canary canary({true, milliseconds(5), milliseconds(20)}, health_);
  enum class Mode { kGood, kBad, kHang, kThrow };
  std::atomic<Mode> mode = Mode::kGood;
  std::mutex mutex;
  std::vector<Canary::Done> hanging;
  canary.watch("generate", [&](Canary::Done done) {
    switch (mode) {
      case Mode::kGood:
        std::thread([done] { done({}); }).detach();
        break;
      case Mode::kBad:
        done(Error{Code::kEngineDead, "dead"});
        break;
      case Mode::kHang: {
        const std::lock_guard lock(mutex);
        hanging.push_back(std::move(done));
        break;
      }
      case Mode::kThrow:
        throw std::runtime_error("thrown");
    }
  });
  for (const Mode bad : {Mode::kBad, Mode::kHang, Mode::kThrow}) {
    mode = Mode::kGood;
    EXPECT_TRUE(eventually([&] { return health_.ready(); }));
    mode = bad;
    EXPECT_TRUE(eventually([&] { return !health_.ready(); }));
  }
  canary.stop();
  for (const auto& done : hanging) done({});
  EXPECT_FALSE(health_.ready()) << "answers after the end count for nothing";
}

TEST_F(CanaryTest, ActivityMakesReadyAgain) {
  Canary canary({true, hours(1), hours(1)}, health_);
  const auto watch = canary.watch("generate", [](const Canary::Done& done) { done(Error{Code::kInternal, "bad"}); });
  watch->activity();
  EXPECT_TRUE(eventually([&] {  // the first probe may come later and fail
    watch->activity();
    return health_.ready();
  }));
}

// With traffic and failing probes at the same time, the last word is the traffic's.
TEST_F(CanaryTest, ActivityAndProbesRace) {
  Canary canary({true, milliseconds(1), milliseconds(1)}, health_);
  const auto watch = canary.watch("generate", [](const Canary::Done& done) { done(Error{Code::kInternal, "bad"}); });
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20'000; ++i) watch->activity();
    });
  }
  for (auto& thread : threads) thread.join();
  canary.stop();
  watch->activity();
  EXPECT_TRUE(health_.ready());
}

TEST_F(CanaryTest, UnwatchedEndpointsAreNotProbed) {
  Canary canary({true, milliseconds(1), milliseconds(100)}, health_);
  std::atomic<int> probes = 0;
  std::atomic<bool> unwatched = false;
  std::atomic<int> late = 0;
  canary.watch("generate", [&](const Canary::Done& done) {
    ++probes;
    if (unwatched) ++late;
    done({});
  });
  EXPECT_TRUE(eventually([&] { return probes > 3; }));
  canary.unwatch("generate");
  unwatched = true;
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(late, 0);
  canary.unwatch("generate");
}

TEST_F(CanaryTest, SeveralEndpoints) {
  health_.add_endpoint("other", true);
  Canary canary({true, milliseconds(5), milliseconds(10)}, health_);
  canary.watch("generate", [](const Canary::Done& done) { done({}); });
  std::atomic<bool> answer = false;
  canary.watch("other", [&](const Canary::Done& done) {
    if (answer) done({});
  });
  EXPECT_FALSE(health_.ready());
  answer = true;
  EXPECT_TRUE(eventually([&] { return health_.ready(); }));
}

TEST_F(CanaryTest, DoneMayOutliveTheCanary) {
  Canary::Done kept;
  std::atomic<bool> asked = false;
  {
    Canary canary({true, hours(1), hours(1)}, health_);
    canary.watch("generate", [&](Canary::Done done) {
      kept = std::move(done);
      asked = true;
    });
    ASSERT_TRUE(eventually([&] { return asked.load(); }));
  }
  kept({});
  EXPECT_FALSE(health_.ready());
}

TEST(CanaryOff, DoesNothing) {
  Health health({});
  health.add_endpoint("generate", true);
  Canary canary({}, health);
  const auto watch = canary.watch("generate", [](const Canary::Done&) { FAIL() << "probed"; });
  health.set_endpoint("generate", false);
  watch->activity();
  EXPECT_FALSE(health.ready()) << "with canaries off, nobody but the endpoint's owner sets its state";
  canary.unwatch("generate");
}

}  // namespace
}  // namespace dyn::runtime

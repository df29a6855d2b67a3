#include "runtime/health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace dyn::runtime {
namespace {

using ::testing::MatchesRegex;

TEST(Health, ReportHasDynamosMembers) {
  Health health({});
  EXPECT_THAT(health.report().json,
              MatchesRegex(R"(\{"endpoints":\{\},"status":"notready","uptime":\{"nanos":[0-9]+,"secs":[0-9]+\}\})"));
  health.add_endpoint("generate", true);
  health.add_endpoint("clear", false);
  EXPECT_THAT(
      health.report().json,
      ::testing::StartsWith(R"({"endpoints":{"clear":"ready","generate":"ready"},"status":"ready","uptime":{)"));
  EXPECT_TRUE(health.report().ready);
}

TEST(Health, WithoutCanariesTheProcessDecides) {
  Health health({});
  health.add_endpoint("generate", false);
  EXPECT_FALSE(health.ready());
  health.set_process(true);
  EXPECT_TRUE(health.ready());
  health.remove_endpoint("generate");
  EXPECT_TRUE(health.ready());
  EXPECT_TRUE(Health({.starting_ready = true}).ready());
}

TEST(Health, AllEndpointsWithACanaryDecide) {
  Health health({.starting_ready = true});
  health.add_endpoint("a", true);
  health.add_endpoint("b", true);
  health.add_endpoint("c", false);
  EXPECT_TRUE(health.ready());
  health.set_endpoint("b", false);
  EXPECT_FALSE(health.ready());
  health.set_endpoint("b", true);
  health.set_endpoint("c", false);
  EXPECT_TRUE(health.ready());
}

TEST(Health, NamedEndpointsDecideBeforeAllElse) {
  Health health({.starting_ready = true, .deciding_endpoints = {"a", "b"}});
  EXPECT_FALSE(health.ready()) << "not registered yet";
  health.add_endpoint("a", false);
  health.add_endpoint("other", true);
  EXPECT_FALSE(health.ready());
  health.add_endpoint("b", false);
  EXPECT_TRUE(health.ready());
  health.set_endpoint("other", false);
  EXPECT_TRUE(health.ready());
  health.set_endpoint("a", false);
  EXPECT_FALSE(health.ready());
}

TEST(Health, WithTheCanaryOnAnEndpointMustFirstSucceed) {
  Health health({.canary_enabled = true});
  health.add_endpoint("generate", true);
  EXPECT_FALSE(health.ready());
  EXPECT_THAT(health.report().json, ::testing::HasSubstr(R"("generate":"notready")"));
  health.set_endpoint("generate", true);
  EXPECT_TRUE(health.ready());
}

TEST(Health, ARemovedEndpointStaysNotReady) {
  Health health({});
  health.add_endpoint("generate", true);
  health.remove_endpoint("generate");
  health.set_endpoint("generate", true);  // a late canary
  health.set_endpoint("unknown", true);
  EXPECT_FALSE(health.ready());
  EXPECT_THAT(health.report().json, ::testing::StartsWith(R"({"endpoints":{"generate":"notready"},)"));
  health.add_endpoint("generate", true);
  EXPECT_TRUE(health.ready());
}

TEST(Health, AfterShutDownNothingMakesItReady) {
  Health health({.starting_ready = true});
  health.add_endpoint("generate", true);
  health.shut_down();
  health.set_process(true);
  health.set_endpoint("generate", true);
  EXPECT_FALSE(health.ready());
  EXPECT_THAT(health.report().json,
              ::testing::StartsWith(R"({"endpoints":{"generate":"notready"},"status":"notready")"));
}

TEST(Health, TroublesAreShownWhileTheyLast) {
  Health health({.starting_ready = true});
  health.set_trouble("event plane", "broker \"b\" away");
  EXPECT_THAT(health.report().json, ::testing::HasSubstr(R"("troubles":{"event plane":"broker \"b\" away"},"uptime")"));
  EXPECT_TRUE(health.ready());
  health.set_trouble("event plane", "");
  EXPECT_THAT(health.report().json, ::testing::Not(::testing::HasSubstr("troubles")));
}

TEST(Health, SafeFromManyThreads) {
  Health health({});
  health.add_endpoint("generate", true);
  std::thread setter([&] {
    for (int i = 0; i < 1000; ++i) health.set_endpoint("generate", i % 2 == 0);
  });
  for (int i = 0; i < 1000; ++i) (void)health.report();
  setter.join();
  EXPECT_FALSE(health.ready());
}

}  // namespace
}  // namespace dyn::runtime

// The vocabulary: results, buffers, identifiers, environment words, log lines, metric pages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <regex>
#include <set>
#include <thread>

#include "base/buffer.h"
#include "base/env.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/result.h"
#include "base/threads.h"

namespace dyn {
namespace {

using ::testing::HasSubstr;

TEST(Result, HoldsAValueOrAnError) {
  Result<int> good = 7;
  EXPECT_TRUE(good.ok());
  EXPECT_EQ(*good, 7);
  Result<int> bad = invalid_argument("too long");
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().with_context("prompt").message, "prompt: too long");
  EXPECT_EQ(bad.error().with_context("prompt").code, Code::kInvalidArgument);
  Result<void> nothing;
  EXPECT_TRUE(nothing.ok());
}

TEST(Result, EveryCodeHasAName) {
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(Code::kEngineDead); ++i) names.insert(to_string(static_cast<Code>(i)));
  EXPECT_EQ(names.size(), static_cast<size_t>(Code::kEngineDead) + 1);
  EXPECT_FALSE(names.contains("unknown"));
}

TEST(Buffer, IsAQueueThatKeepsItsMemory) {
  Buffer buffer;
  std::string expected;
  size_t consumed = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::string piece(static_cast<size_t>(i % 37), static_cast<char>('a' + i % 26));
    buffer.append(piece);
    expected += piece;
    const size_t take = std::min<size_t>(buffer.size(), static_cast<size_t>(i % 31));
    ASSERT_EQ(as_text(buffer.view()), std::string_view(expected).substr(consumed));
    buffer.consume(take);
    consumed += take;
  }
  buffer.consume(buffer.size());
  const size_t capacity = buffer.capacity();
  buffer.append("x");
  EXPECT_EQ(buffer.capacity(), capacity);
  buffer.clear();
  buffer.trim(8);
  EXPECT_EQ(buffer.capacity(), std::min<size_t>(capacity, 8));
}

TEST(Bytes, BigEndian) {
  std::byte raw[8];
  store_be<uint64_t>(raw, 0x0102030405060708ULL);
  EXPECT_EQ(static_cast<int>(raw[0]), 1);
  EXPECT_EQ(load_be<uint64_t>(raw), 0x0102030405060708ULL);
  EXPECT_EQ(load_be<uint16_t>(raw + 6), 0x0708);
}

TEST(Ids, AreRandomAndWellFormed) {
  EXPECT_NE(random_u64(), random_u64());
  EXPECT_EQ(to_hex(7587891896486092546ULL), "694d9b7a3c1e5f02");
  EXPECT_TRUE(std::regex_match(random_uuid(),
                               std::regex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")));
}

TEST(Env, EmptyCountsAsUnset) {
  constexpr char kName[] = "DYN_BASE_TEST_VARIABLE";
  ::unsetenv(kName);
  EXPECT_FALSE(env(kName));
  ::setenv(kName, "", 1);
  EXPECT_FALSE(env(kName));
  ::setenv(kName, " x", 1);
  EXPECT_EQ(env(kName), " x");
  ::unsetenv(kName);
}

TEST(Env, ReadsTruthAsDynamoDoes) {
  for (const char* text : {"1", "true", "TRUE", "on", "Yes"}) EXPECT_TRUE(is_truthy(text)) << text;
  for (const char* text : {"", "0", "false", "OFF", "no"}) EXPECT_TRUE(is_falsy(text)) << text;
  EXPECT_FALSE(is_truthy("maybe"));
  EXPECT_FALSE(is_falsy("maybe"));
}

TEST(Threads, AtLeastOneCpu) {
  EXPECT_GE(usable_cpus(), 1U);
}

class LogTest : public ::testing::Test {
 protected:
  void TearDown() override { log::init({}); }
};

TEST_F(LogTest, FilterGoesByTargetPrefixLongestFirst) {
  log::init({.filter = "warn, net=debug ,net.tcp=error"});
  EXPECT_FALSE(log::enabled(log::Level::kInfo, "worker"));
  EXPECT_TRUE(log::enabled(log::Level::kWarn, "worker"));
  EXPECT_TRUE(log::enabled(log::Level::kDebug, "net.http"));
  EXPECT_FALSE(log::enabled(log::Level::kWarn, "net.tcp"));
}

TEST_F(LogTest, JsonLineIsEscapedAndHasDynamosKeys) {
  log::init({.filter = "info", .jsonl = true});
  testing::internal::CaptureStderr();
  log::write(log::Level::kInfo, "worker", "a \"quoted\"\nline", {{"request_id", "x\x01y"}});
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_THAT(line,
              HasSubstr(R"("level":"INFO","target":"worker","message":"a \"quoted\"\nline","request_id":"x\u0001y"})"));
  EXPECT_TRUE(std::regex_search(line, std::regex(R"rx(^\{"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")rx")));
}

TEST_F(LogTest, BadFilterPartIsReportedNotFatal) {
  testing::internal::CaptureStderr();
  log::init({.filter = "loud,net=debug"});
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("'loud' is not understood"));
  EXPECT_TRUE(log::enabled(log::Level::kDebug, "net"));
}

TEST(Metrics, SameNameAndLabelsIsTheSameSeries) {
  metrics::Registry registry({{"dynamo_namespace", "ns"}});
  auto& a = registry.counter("requests_total", "Requests", {{"model", "m"}});
  auto& b = registry.counter("requests_total", "Requests", {{"model", "m"}});
  EXPECT_EQ(&a, &b);
  a.increment();
  std::thread other([&] { b.increment(2); });
  other.join();
  registry.histogram("seconds", "Time", {0.1, 1}).observe(0.5);
  registry.gauge("depth", "Depth").set(3);
  bool asked = false;
  registry.on_collect([&] { asked = true; });
  const std::string page = registry.exposition();
  EXPECT_TRUE(asked);
  EXPECT_THAT(page, HasSubstr("# TYPE requests_total counter"));
  EXPECT_THAT(page, HasSubstr("requests_total{dynamo_namespace=\"ns\",model=\"m\"} 3"));
  EXPECT_THAT(page, HasSubstr("seconds_bucket{dynamo_namespace=\"ns\",le=\"1\"} 1"));
  EXPECT_THAT(page, HasSubstr("depth{dynamo_namespace=\"ns\"} 3"));
}

}  // namespace
}  // namespace dyn

#include "app/options/text.h"

#include <gtest/gtest.h>

namespace dyn::app {
namespace {

TEST(Text, IntegersAreWholeTexts) {
  EXPECT_EQ(parse_int("42"), 42);
  EXPECT_EQ(parse_int("-1"), -1);
  EXPECT_EQ(parse_int("+7"), 7);
  for (const char* bad : {"", "4x", " 4", "4.0", "+-4", "0x10", "9223372036854775808"})
    EXPECT_FALSE(parse_int(bad)) << bad;
  EXPECT_EQ(parse_int("9223372036854775807"), INT64_MAX);
}

TEST(Text, NumbersAreFinite) {
  EXPECT_EQ(parse_double("1e-3"), 0.001);
  for (const char* bad : {"", "nan", "inf", "1e999", "1,5", "0.5f"}) EXPECT_FALSE(parse_double(bad)) << bad;
}

TEST(Text, SizesHaveSuffixes) {
  EXPECT_EQ(parse_bytes("512"), 512U);
  EXPECT_EQ(parse_bytes("4K"), 4096U);
  EXPECT_EQ(parse_bytes("1.5k"), 1536U);
  EXPECT_EQ(parse_bytes("2GiB"), 2ULL << 30);
  EXPECT_EQ(parse_bytes("2gb"), 2'000'000'000U);
  EXPECT_EQ(parse_bytes("1 T"), 1ULL << 40);
  for (const char* bad : {"", "G", "4X", "4KiX", "-1", "1..5", "99999999999999G", "1e3", "9223372036854775807K"}) {
    EXPECT_FALSE(parse_bytes(bad)) << bad;
  }
}

TEST(Text, BooleansAreDynamosWords) {
  for (const char* word : {"1", "true", "ON", "Yes"}) EXPECT_EQ(parse_bool(word), true) << word;
  for (const char* word : {"0", "False", "off", "NO"}) EXPECT_EQ(parse_bool(word), false) << word;
  for (const char* word : {"", "2", "y", "enabled"}) EXPECT_FALSE(parse_bool(word)) << word;
}

TEST(Text, ClosestFindsTypingErrorsOnly) {
  const std::vector<std::string> names = {"max-batch-size", "max-num-tokens", "model", "kv_cache_config"};
  EXPECT_EQ(closest("max-bach-size", names), "max-batch-size");
  EXPECT_EQ(closest("max_batch_size", names), "max-batch-size");
  EXPECT_EQ(closest("mdoel", names), "model");
  EXPECT_EQ(closest("max-bach", names), "max-batch-size");
  EXPECT_EQ(closest("kv-cache-config", names), "kv_cache_config");
  EXPECT_FALSE(closest("temperature", names));
  EXPECT_FALSE(closest("", names));
}

TEST(Text, DoublesReadBack) {
  for (const double value : {0.9, 1e-9, 123456789.125, -0.1}) EXPECT_EQ(parse_double(format_double(value)), value);
}

}  // namespace
}  // namespace dyn::app

// The layers against each other: default < file < environment < flag < override.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/options/test_support.h"

namespace dyn::app {
namespace {

using testing::error_of;
using testing::file_store;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::notices_of;
using testing::resolve;
using testing::TempFile;

// Every subset of the layers: the highest one that speaks wins, each replaced value is told once.
TEST(Precedence, HighestLayerWinsInEveryCombination) {
  const TempFile file("max_batch_size: 11\n");
  for (unsigned set = 0; set < 16; ++set) {
    SCOPED_TRACE(set);
    std::vector<std::string> arguments;
    Environment environment = file_store();
    int64_t expected = 256;
    Layer layer = Layer::kDefault;
    size_t given = 0;
    const auto add = [&](unsigned bit, Layer its_layer, int64_t value) {
      if ((set & bit) == 0) return false;
      expected = value;
      layer = its_layer;
      ++given;
      return true;
    };
    if (add(1, Layer::kFile, 11)) arguments.insert(arguments.end(), {"--extra-engine-args", file.path()});
    if (add(2, Layer::kEnvironment, 12)) environment["DYN_TRTLLM_MAX_BATCH_SIZE"] = "12";
    if (add(4, Layer::kFlag, 13)) arguments.push_back("--max-batch-size=13");
    if (add(8, Layer::kOverride, 14)) arguments.push_back("--override-engine-args={\"max_batch_size\":14}");
    auto resolved = resolve(arguments, environment);
    ASSERT_TRUE(resolved) << resolved.error().message;
    EXPECT_EQ(resolved->settings.integer("max-batch-size"), expected);
    EXPECT_EQ(resolved->settings.get(*find_option("max-batch-size")).source.layer, layer);
    EXPECT_EQ(resolved->notices.size(), given > 0 ? given - 1 : 0) << notices_of(resolved->notices);
  }
}

TEST(Precedence, ReplacementNamesBothValuesAndSources) {
  const TempFile file("kv_cache_config:\n  tokens_per_block: 64\n");
  auto resolved = resolve({"--extra-engine-args", file.path(), "--kv-block-size", "16"});
  ASSERT_TRUE(resolved);
  EXPECT_EQ(notices_of(resolved->notices),
            "kv-block-size: 64 (file " + file.path() + ":2) is replaced by 16 (flag --kv-block-size)\n");
}

TEST(Precedence, EqualValuesAreNoNotice) {
  auto resolved = resolve({"--max-batch-size", "5", "--max-batch-size", "5", "--trtllm.max_batch_size", "5"});
  ASSERT_TRUE(resolved);
  EXPECT_TRUE(resolved->notices.empty());
}

TEST(Precedence, RepeatedFlagsWarnAndTheLastWins) {
  auto resolved = resolve({"--model-path", "a", "--model", "b"});
  ASSERT_TRUE(resolved);
  EXPECT_EQ(resolved->settings.text("model"), "b");
  ASSERT_EQ(resolved->notices.size(), 1U);
  EXPECT_EQ(resolved->notices[0].level, log::Level::kWarn);
  EXPECT_THAT(resolved->notices[0].text, HasSubstr("a (flag --model-path) is replaced by b (flag --model)"));
}

TEST(Precedence, DottedFlagWinsOverOverrideJson) {
  auto resolved =
      resolve({"--override-engine-args", R"({"max_seq_len":10,"max_num_tokens":20})", "--trtllm.max_seq_len", "30"});
  ASSERT_TRUE(resolved) << error_of(resolved);
  EXPECT_EQ(resolved->settings.integer("max-seq-len"), 30);
  EXPECT_EQ(resolved->settings.integer("max-num-tokens"), 20);
}

// The original loses the flag when a file brings its own kv_cache_config.
TEST(Precedence, SectionsAreMergedFieldByField) {
  const TempFile file("kv_cache_config:\n  enable_block_reuse: false\n  free_gpu_memory_fraction: 0.3\n");
  auto resolved = resolve({"--extra-engine-args", file.path(), "--free-gpu-memory-fraction", "0.5",
                           "--override-engine-args", R"({"kv_cache_config":{"max_tokens":4096}})"});
  ASSERT_TRUE(resolved) << error_of(resolved);
  EXPECT_FALSE(resolved->settings.boolean("kv_cache_config.enable_block_reuse"));
  EXPECT_EQ(resolved->settings.number("free-gpu-memory-fraction"), 0.5);
  EXPECT_EQ(resolved->settings.integer("kv_cache_config.max_tokens"), 4096);
}

TEST(Precedence, NullGoesBackToTheDefault) {
  const TempFile file("max_seq_len: 100\nkv_cache_config:\n  max_tokens: 64\n  tokens_per_block: 16\n");
  auto resolved = resolve(
      {"--extra-engine-args", file.path(), "--override-engine-args", R"({"max_seq_len":null,"kv_cache_config":null})"});
  ASSERT_TRUE(resolved) << error_of(resolved);
  EXPECT_FALSE(resolved->settings.has("max-seq-len"));
  EXPECT_FALSE(resolved->settings.has("kv_cache_config.max_tokens"));
  EXPECT_EQ(resolved->settings.integer("kv-block-size"), 32);
  EXPECT_EQ(resolved->notices.size(), 3U);
}

TEST(Precedence, FilePathAndOverrideMayComeFromTheEnvironment) {
  const TempFile file("max_batch_size: 7\n");
  Environment environment = file_store();
  environment["DYN_TRTLLM_EXTRA_ENGINE_ARGS"] = file.path();
  environment["DYN_TRTLLM_OVERRIDE_ENGINE_ARGS"] = R"({"max_seq_len": 9})";
  auto resolved = resolve({}, environment);
  ASSERT_TRUE(resolved) << error_of(resolved);
  EXPECT_EQ(resolved->settings.integer("max-batch-size"), 7);
  EXPECT_EQ(resolved->settings.integer("max-seq-len"), 9);
}

TEST(Environment, EmptyCountsAsUnset) {
  Environment environment = file_store();
  environment["DYN_TRTLLM_MAX_BATCH_SIZE"] = "";
  EXPECT_TRUE(resolve({}, environment));
}

TEST(Environment, BothNamesOfTheStoreAreRead) {
  EXPECT_EQ(resolve({}, {{"DYN_STORE_KV", "mem"}})->settings.text("discovery-backend"), "mem");
  auto both = resolve({}, {{"DYN_STORE_KV", "mem"}, {"DYN_DISCOVERY_BACKEND", "file"}});
  ASSERT_TRUE(both);
  EXPECT_EQ(both->settings.text("discovery-backend"), "file");
  EXPECT_THAT(notices_of(both->notices), HasSubstr("DYN_STORE_KV is not used"));
  // 0.8 takes any other word for "the key-value store".
  auto odd = resolve({}, {{"DYN_STORE_KV", "file"}, {"DYN_DISCOVERY_BACKEND", "kv_store"}});
  ASSERT_TRUE(odd) << error_of(odd);
  EXPECT_EQ(odd->settings.text("discovery-backend"), "file");
  EXPECT_THAT(error_of(resolve({}, {{"DYN_DISCOVERY_BACKEND", "kv_store"}})),
              HasSubstr("expected etcd|kubernetes|file|mem"));
}

TEST(Environment, DefaultStoreIsRefusedWithTheWayOut) {
  const std::string error = error_of(resolve({}, {}));
  EXPECT_THAT(error, HasSubstr("--discovery-backend etcd (the default) is not supported"));
  EXPECT_THAT(error, HasSubstr("DYN_STORE_KV=file"));
}

TEST(Environment, UnknownVariablesOfOursAreTold) {
  Environment environment = file_store();
  environment["DYN_TRTLLM_MAX_BACH_SIZE"] = "4";
  auto resolved = resolve({}, environment);
  ASSERT_TRUE(resolved);
  EXPECT_THAT(notices_of(resolved->notices), HasSubstr("did you mean DYN_TRTLLM_MAX_BATCH_SIZE?"));
}

TEST(Environment, DeprecatedPublishSwitchFillsOnlyWhatIsUnset) {
  Environment environment = file_store();
  environment["DYN_TRTLLM_PUBLISH_EVENTS_AND_METRICS"] = "1";
  environment["DYN_TRTLLM_PUBLISH_KV_EVENTS"] = "0";
  auto resolved = resolve({}, environment);
  ASSERT_TRUE(resolved) << error_of(resolved);
  EXPECT_TRUE(resolved->settings.boolean("publish-metrics"));
  EXPECT_FALSE(resolved->settings.boolean("publish-kv-events"));
  environment.erase("DYN_TRTLLM_PUBLISH_KV_EVENTS");
  resolved = resolve({}, environment);
  ASSERT_TRUE(resolved) << error_of(resolved);
  EXPECT_TRUE(resolved->settings.boolean("publish-kv-events"));
}

TEST(Flags, DeprecatedPublishSwitchStandsForBoth) {
  auto resolved = resolve({"--publish-events-and-metrics"});
  ASSERT_TRUE(resolved) << error_of(resolved);
  EXPECT_TRUE(resolved->settings.boolean("publish-kv-events"));
  EXPECT_TRUE(resolved->settings.boolean("publish-metrics"));
  auto off = resolve({"--no-publish-events-and-metrics"});
  ASSERT_TRUE(off);
  EXPECT_FALSE(off->settings.boolean("publish-metrics"));
}

TEST(Flags, RefusalDependsOnTheValue) {
  EXPECT_TRUE(resolve({"--tensor-parallel-size", "1"}));
  EXPECT_THAT(error_of(resolve({"--tensor-parallel-size", "2"})),
              HasSubstr("--tensor-parallel-size 2 is not supported"));
  EXPECT_TRUE(resolve({"--disagg-mode", "prefill_and_decode"}));
  EXPECT_TRUE(resolve({"--disaggregation-mode", "pd"}));
  EXPECT_THAT(error_of(resolve({"--disagg-mode", "prefill"})), HasSubstr("--disagg-mode prefill"));
  EXPECT_TRUE(resolve({"--connector"}));
  EXPECT_TRUE(resolve({"--connector", "none"}));
  EXPECT_THAT(error_of(resolve({"--connector", "none", "kvbm"})), HasSubstr("none,kvbm"));
  EXPECT_TRUE(resolve({"--no-dyn-enable-structural-tag", "--dyn-structural-tag", "false"}));
  EXPECT_THAT(error_of(resolve({"--dyn-structural-tag"})), HasSubstr("guided decoding"));
  EXPECT_TRUE(resolve({"--default-height", "480"}));
  EXPECT_THAT(error_of(resolve({"--default-height", "720"})), HasSubstr("diffusion"));
}

TEST(Flags, AllProblemsAreToldAtOnce) {
  const std::string error =
      error_of(resolve({"--tensor-parallel-size", "2", "--revision", "/x", "--max-seq-len", "1"}));
  EXPECT_THAT(error, HasSubstr("--tensor-parallel-size 2"));
  EXPECT_THAT(error, HasSubstr("--revision /x"));
  EXPECT_THAT(error, HasSubstr("--max-seq-len 1 cannot be used\n  why: expected an integer from 2"));
}

TEST(Flags, WithoutEffectIsToldOnceAndOnlyWhenItIsNotTheDefault) {
  auto changed = resolve({"--disable-request-abort"});
  ASSERT_TRUE(changed);
  EXPECT_EQ(changed->notices.size(), 1U);
  EXPECT_THAT(changed->notices[0].text, HasSubstr("--disable-request-abort is without effect"));
  EXPECT_TRUE(resolve({"--disable-request-abort=false"})->notices.empty());
}

TEST(Flags, RangesAndTypesAreChecked) {
  for (const auto& [flag, value] :
       std::vector<std::pair<std::string, std::string>>{{"free-gpu-memory-fraction", "0"},
                                                        {"free-gpu-memory-fraction", "1.01"},
                                                        {"free-gpu-memory-fraction", "nan"},
                                                        {"max-batch-size", "0"},
                                                        {"max-batch-size", "-4"},
                                                        {"max-batch-size", "99999999999999999999"},
                                                        {"max-batch-size", "4.5"},
                                                        {"tcp-rpc-port", "65536"},
                                                        {"system-port", "-32769"},
                                                        {"kv-cache-bytes", "12Q"},
                                                        {"kv-cache-bytes", "1"},
                                                        {"engine-request-limit", "0"},
                                                        {"health-check-timeout-secs", "0"},
                                                        {"endpoint-types", "chat,embeddings"},
                                                        {"engine", "vllm"}}) {
    EXPECT_THAT(error_of(resolve({"--" + flag + "=" + value})),
                HasSubstr("--" + flag + " " + value + " cannot be used"));
  }
}

TEST(Flags, SecretsAreNeverShown) {
  Environment environment = file_store();
  environment["HF_TOKEN"] = "hf_secret";
  environment["NATS_SERVER"] = "nats://user:pass@host:4222";
  auto resolved = resolve({}, environment);
  ASSERT_TRUE(resolved);
  const std::string text = notices_of(resolved->notices);
  EXPECT_THAT(text, HasSubstr("HF_TOKEN=***"));
  EXPECT_THAT(text, HasSubstr("nats://user:***@host:4222"));
  EXPECT_THAT(text, Not(HasSubstr("secret")));
}

}  // namespace
}  // namespace dyn::app

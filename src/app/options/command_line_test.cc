#include "app/options/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dyn::app {
namespace {

using ::testing::HasSubstr;

Result<CommandLine> parse(std::vector<std::string_view> arguments) {
  return parse_arguments(arguments);
}

std::string flags(std::vector<std::string_view> arguments) {
  auto line = parse(std::move(arguments));
  if (!line) return "error: " + line.error().message;
  std::string text;
  for (const GivenFlag& flag : line->flags) text += flag.spelling + "=" + flag.text + ";";
  return text;
}

TEST(CommandLine, ValueFormsAreEqual) {
  EXPECT_EQ(flags({"--max-batch-size", "4", "--max-num-tokens=8"}), "--max-batch-size=4;--max-num-tokens=8;");
  EXPECT_EQ(flags({"--served-model-name="}), "--served-model-name=;");
  EXPECT_EQ(flags({"--override-engine-args={\"a\":\"b=c\"}"}), "--override-engine-args={\"a\":\"b=c\"};");
  EXPECT_EQ(flags({"--system-port", "-1"}), "--system-port=-1;");
}

TEST(CommandLine, BooleansNeedNoValue) {
  EXPECT_EQ(flags({"--publish-metrics", "--no-health-check-enabled", "--publish-metrics=false"}),
            "--publish-metrics=true;--no-health-check-enabled=false;--publish-metrics=false;");
  EXPECT_THAT(flags({"--no-publish-metrics=true"}), HasSubstr("takes no value"));
  EXPECT_EQ(flags({"--enable-local-indexer", "true", "--use-nixl-connect"}),
            "--enable-local-indexer=true;--use-nixl-connect=true;");
}

TEST(CommandLine, ListsTakeSeveralArguments) {
  EXPECT_EQ(flags({"--connector", "a", "b", "--publish-metrics"}), "--connector=a b;--publish-metrics=true;");
  EXPECT_EQ(flags({"--connector", "--publish-metrics"}), "--connector=;--publish-metrics=true;");
}

TEST(CommandLine, OptionalValues) {
  EXPECT_EQ(flags({"--dyn-structural-tag", "--publish-metrics"}), "--dyn-structural-tag=true;--publish-metrics=true;");
  EXPECT_EQ(flags({"--dyn-structural-tag", "{}"}), "--dyn-structural-tag={};");
}

TEST(CommandLine, UnambiguousPrefixesAreAccepted) {
  EXPECT_EQ(flags({"--max-b=4"}).substr(0, 5), "error");  // max-batch-size or max-beam-width
  EXPECT_EQ(flags({"--max-batch=4"}), "--max-batch-size=4;");
  EXPECT_EQ(flags({"--no-publish-m"}), "--no-publish-metrics=false;");
  EXPECT_THAT(flags({"--mod=x"}), HasSubstr("ambiguous flag --mod\n  why: it could be --model"));
  // Two spellings of one option are no ambiguity; an exact name is none either.
  EXPECT_EQ(flags({"--disag=agg"}).substr(0, 7), "--disag");
  EXPECT_EQ(flags({"--model=x"}), "--model=x;");
}

TEST(CommandLine, MissingValues) {
  EXPECT_THAT(flags({"--max-batch-size"}), HasSubstr("needs a value"));
  EXPECT_THAT(flags({"--model", "--engine", "mock"}), HasSubstr("--model needs a value"));
}

TEST(CommandLine, UnknownFlagsGetASuggestion) {
  EXPECT_THAT(flags({"--max-bach-size", "4"}), HasSubstr("did you mean --max-batch-size?"));
  EXPECT_THAT(flags({"--max_batch_size", "4"}), HasSubstr("did you mean --max-batch-size?"));
  EXPECT_THAT(flags({"--completely-different"}), HasSubstr("see --help-all"));
  EXPECT_THAT(flags({"--"}), HasSubstr("unexpected argument"));
  EXPECT_THAT(flags({"--=x"}), HasSubstr("unknown flag"));
  EXPECT_THAT(flags({"model"}), HasSubstr("unexpected argument 'model'"));
  EXPECT_THAT(flags({"-m", "x"}), HasSubstr("unexpected argument '-m'"));
}

TEST(CommandLine, Actions) {
  EXPECT_TRUE(parse({"-h"})->help);
  EXPECT_TRUE(parse({"--help"})->help);
  EXPECT_EQ(parse({"--help=model"})->help_group, "model");
  EXPECT_TRUE(parse({"--help-all"})->help_all);
  EXPECT_TRUE(parse({"--version"})->version);
  EXPECT_TRUE(parse({"--dump-config"})->dump_config);
  EXPECT_THAT(flags({"--version=1"}), HasSubstr("takes no value"));
}

std::string dotted(std::vector<std::string_view> arguments) {
  auto line = parse(std::move(arguments));
  return line ? line->dotted.to_json() : "error: " + line.error().message;
}

TEST(CommandLine, DottedFlagsBuildATree) {
  EXPECT_EQ(dotted({"--trtllm.kv_cache_config.free_gpu_memory_fraction", "0.7", "--trtllm.a.b.c=x", "--trtllm.a.d",
                    "-3", "--trtllm.e", "none"}),
            R"({"kv_cache_config":{"free_gpu_memory_fraction":0.7},"a":{"b":{"c":"x"},"d":-3},"e":null})");
  EXPECT_EQ(dotted({"--trtllm.a", "1", "--trtllm.a", "2"}), R"({"a":2})");
  EXPECT_THAT(dotted({"--trtllm.a"}), HasSubstr("needs a value"));
  EXPECT_THAT(dotted({"--trtllm.a", "--model"}), HasSubstr("needs a value"));
  EXPECT_THAT(dotted({"--trtllm.a..b", "1"}), HasSubstr("names no engine key"));
  EXPECT_THAT(dotted({"--trtllm.", "1"}), HasSubstr("names no engine key"));
  EXPECT_THAT(dotted({"--trtllm.a", "1", "--trtllm.a.b", "1"}), HasSubstr("collides"));
  EXPECT_THAT(dotted({"--trtllm.a.b", "1", "--trtllm.a", "1"}), HasSubstr("collides"));
}

}  // namespace
}  // namespace dyn::app

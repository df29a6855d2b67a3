#include "app/cli.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "app/options/test_support.h"

namespace dyn::app {
namespace {

using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using testing::parse;
using ::testing::StartsWith;
using Kind = ParsedCommand::Kind;

TEST(Cli, ServeIsTheCommandWithoutAWord) {
  EXPECT_EQ(parse({"--model", "m"})->kind, Kind::kServe);
  EXPECT_EQ(parse({"serve", "--model", "m"})->config.model, "m");
  EXPECT_EQ(parse({})->kind, Kind::kServe);
}

TEST(Cli, BenchGetsItsOwnArguments) {
  const std::vector<std::string_view> arguments = {"bench", "stream", "--anything"};
  auto command = parse_command_line(arguments, {});
  ASSERT_TRUE(command);
  EXPECT_EQ(command->kind, Kind::kBench);
  EXPECT_THAT(command->arguments, ElementsAre("stream", "--anything"));
  EXPECT_EQ(parse({"build", "--model", "m"})->kind, Kind::kBuild);
  EXPECT_EQ(parse({"engine-info", "d", "--json"})->kind, Kind::kEngineInfo);
}

TEST(Cli, PrintingNeedsNoValidConfiguration) {
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{{"--help"},
                                                                                         {"-h"},
                                                                                         {"--help-all"},
                                                                                         {"help"},
                                                                                         {"help", "model"},
                                                                                         {"completion", "zsh"},
                                                                                         {"serve", "--help=model"},
                                                                                         {"print-options-markdown"}}) {
    auto command = parse(arguments, {});
    ASSERT_TRUE(command) << arguments[0] << error_of(command);
    EXPECT_EQ(command->kind, Kind::kPrint);
    EXPECT_FALSE(command->text.empty());
  }
  EXPECT_THAT(parse({"--version"}, {})->text, StartsWith("dynamo-trtllm 0."));
}

TEST(Cli, UnknownCommand) {
  EXPECT_THAT(error_of(parse({"sreve"})), HasSubstr("did you mean serve?"));
  EXPECT_THAT(error_of(parse({"completion"})), HasSubstr("bash, zsh and fish"));
}

TEST(Cli, ErrorsAreThreeLines) {
  EXPECT_EQ(error_of(parse({"--lora-adapters"})),
            "unknown flag --lora-adapters\n  why: no option has this name\n  fix: see --help-all for all flags");
}

TEST(Cli, DumpsTheConfiguration) {
  auto printed = parse({"--dump-config", "--max-batch-size", "4"});
  ASSERT_TRUE(printed);
  EXPECT_EQ(printed->kind, Kind::kPrint);
  EXPECT_THAT(printed->text, HasSubstr(R"("source": "flag --max-batch-size")"));

  const testing::TempFile file("");
  auto command = parse({"--dump-config-to", file.path()});
  ASSERT_TRUE(command);
  ASSERT_TRUE(write_config_dump(*command));
  std::ifstream stream(file.path());
  std::stringstream text;
  text << stream.rdbuf();
  EXPECT_EQ(text.str(), command->config_dump);
  command->config.dump_config_to = "/nonexistent/x";
  EXPECT_THAT(write_config_dump(*command).error().message, HasSubstr("No such file"));
}

}  // namespace
}  // namespace dyn::app

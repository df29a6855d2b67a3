#include "app/options/render.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "app/options/test_support.h"
#include "app/options/tree.h"

namespace dyn::app {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(ReferencePage, CommittedPageIsCurrent) {
  std::ifstream file(DYN_SOURCE_DIR "/docs/reference/options.md");
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_TRUE(text.str() == reference_page())
      << "run: dynamo-trtllm print-options-markdown > docs/reference/options.md";
}

TEST(Help, ShowsHonouredFlagsByGroup) {
  const std::string help = help_text();
  EXPECT_THAT(help, HasSubstr("--max-batch-size N"));
  EXPECT_THAT(help, HasSubstr("KV cache (--help=kv-cache)"));
  EXPECT_THAT(help, HasSubstr("--health-check-enabled, --no-health-check-enabled"));
  EXPECT_THAT(help, Not(HasSubstr("--tensor-parallel-size")));
  EXPECT_THAT(help, Not(HasSubstr("dit-ring-size")));
}

TEST(Help, AllNamesEveryOption) {
  const std::string help = help_all_text();
  for (const Option& option : option_table()) EXPECT_THAT(help, HasSubstr(std::string(option.name)));
}

TEST(Help, Groups) {
  EXPECT_THAT(*help_group_text("diffusion"), HasSubstr("--dit-ring-size"));
  auto wrong = help_group_text("kv-cash");
  ASSERT_FALSE(wrong);
  EXPECT_THAT(wrong.error().message, HasSubstr("did you mean --help=kv-cache?"));
}

TEST(Help, LinesAreNotLong) {
  std::istringstream lines(help_all_text());
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 130U) << line;
}

TEST(Completion, OffersHonouredFlagsInEveryShell) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    auto script = completion_script(shell);
    ASSERT_TRUE(script);
    EXPECT_THAT(*script, HasSubstr("max-batch-size"));
    EXPECT_THAT(*script, HasSubstr("native mock"));
    EXPECT_THAT(*script, Not(HasSubstr("native mock trtllm"))) << "a refused value is not offered";
    EXPECT_THAT(*script, Not(HasSubstr("tensor-parallel-size")));
  }
  EXPECT_FALSE(completion_script("tcsh"));
}

TEST(Completion, BashScriptIsValid) {
  if (std::system("command -v bash >/dev/null 2>&1") != 0) GTEST_SKIP() << "no bash";
  const testing::TempFile script(*completion_script("bash") +
                                 "COMP_WORDS=(dynamo-trtllm --engine '') COMP_CWORD=2; _dynamo_trtllm\n"
                                 "[ \"${COMPREPLY[*]}\" = 'native mock' ]\n");
  EXPECT_EQ(std::system(("bash " + script.path()).c_str()), 0);
}

TEST(Dump, IsJsonWithValuesSourcesAndNoSecrets) {
  Environment environment = testing::file_store();
  environment["HF_TOKEN"] = "hf_secret";
  environment["NATS_SERVER"] = "nats://user:pass@host";
  auto resolved = testing::resolve({"--max-batch-size", "4", "--endpoint-types", "chat"}, environment);
  ASSERT_TRUE(resolved);
  const std::string text = config_dump(resolved->settings);
  auto tree = parse_json(text, "dump");
  ASSERT_TRUE(tree) << tree.error().message;
  const Tree& options = *tree->find("options");
  EXPECT_EQ(options.find("max-batch-size")->to_json(),
            R"({"value":4,"source":"flag --max-batch-size","effect":"honoured"})");
  EXPECT_EQ(options.find("endpoint-types")->find("value")->to_json(), R"(["chat"])");
  EXPECT_EQ(options.find("max-num-tokens")->find("source")->text, "default");
  EXPECT_EQ(options.find("discovery-backend")->find("source")->text, "environment DYN_DISCOVERY_BACKEND");
  EXPECT_EQ(options.find("HF_TOKEN")->find("value")->text, "***");
  EXPECT_THAT(text, Not(HasSubstr("secret")));
  EXPECT_THAT(text, Not(HasSubstr(":pass@")));
}

}  // namespace
}  // namespace dyn::app

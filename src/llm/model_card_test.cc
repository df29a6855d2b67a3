#include "llm/model_card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/test_support.h"
#include "llm/test_support.h"

namespace dyn::llm {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

class ModelDirectory : public testing::Test {
 protected:
  void write(const std::string& name, std::string_view text) { std::ofstream(dir_ / name) << text; }
  void SetUp() override {
    write("config.json", R"({"model_type":"llama","max_position_embeddings":4096})");
    write("tokenizer.json", "{}");
    write("tokenizer_config.json", R"({"chat_template":"{{ x }}","model_max_length":1000000000000000019884624838656})");
  }
  ModelFiles files(const std::string& chat_template = {}) {
    auto found = find_model_files(dir_.path(), chat_template);
    EXPECT_TRUE(found.ok()) << (found.ok() ? "" : found.error().message);
    return found.ok() ? *found : ModelFiles{};
  }
  ModelCard card() { return {.display_name = "Tiny/Llama-1B", .files = files(), .kv_cache_block_size = 32}; }
  static Json encode(const ModelCard& card) {
    auto text = encode_model_card(card);
    EXPECT_TRUE(text.ok()) << (text.ok() ? "" : text.error().message);
    return text.ok() ? Json::parse(*text) : Json();
  }
  TempDir dir_;
};

TEST_F(ModelDirectory, FindsAndDigestsFiles) {
  write("abc", "abc");
  const auto abc = digest_file(dir_ / "abc");
  ASSERT_TRUE(abc.ok());
  EXPECT_EQ(abc->checksum, "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
  EXPECT_EQ(abc->size, 3U);

  const ModelFiles found = files();
  EXPECT_EQ(found.directory, dir_.path());
  EXPECT_EQ(found.config.path, dir_ / "config.json");
  EXPECT_EQ(found.tokenizer.size, 2U);
  EXPECT_TRUE(found.has_chat_template);
  EXPECT_FALSE(found.chat_template.has_value());
  EXPECT_FALSE(found.generation_config.has_value());
  EXPECT_EQ(found.max_context_length, 4096U);
}

TEST_F(ModelDirectory, ContextLengthOfOtherPlaces) {
  write("config.json", R"({"text_config":{"max_position_embeddings":128}})");
  EXPECT_EQ(files().max_context_length, 128U);
  write("config.json", "{}");
  EXPECT_FALSE(files().max_context_length.has_value());  // 1e30 is no length
  write("tokenizer_config.json", R"({"model_max_length":512})");
  EXPECT_EQ(files().max_context_length, 512U);
}

TEST_F(ModelDirectory, TokenizerOfAnotherDirectory) {
  const TempDir other;
  std::ofstream(other / "tokenizer.json") << "{\"other\":1}";
  write("config.json", R"({"vocab_size":261})");
  const auto found = find_model_files(dir_.path(), {}, other.path());
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_EQ(found->config.path, dir_ / "config.json");
  EXPECT_EQ(found->tokenizer.path, other / "tokenizer.json");
  EXPECT_FALSE(found->tokenizer_config.has_value());
  EXPECT_EQ(found->vocab_size, 261U);
  EXPECT_THAT(find_model_files(dir_.path(), {}, "/nowhere").error().message, HasSubstr("/nowhere"));
}

TEST_F(ModelDirectory, ErrorsNameTheFile) {
  const auto error = [&](const std::string& chat_template = {}) {
    const auto found = find_model_files(dir_.path(), chat_template);
    return found.ok() ? "" : found.error().message;
  };
  EXPECT_THAT(error("/nowhere/template.jinja"), HasSubstr("/nowhere/template.jinja does not exist"));
  write("tokenizer_config.json", "[]");
  EXPECT_THAT(error(), HasSubstr("tokenizer_config.json is not a JSON object"));
  write("config.json", "{");
  EXPECT_THAT(error(), HasSubstr("config.json is not a JSON object"));
  std::filesystem::remove(dir_ / "tokenizer.json");
  EXPECT_THAT(error(), HasSubstr("/tokenizer.json does not exist"));
  std::filesystem::remove(dir_ / "config.json");
  EXPECT_THAT(error(), HasSubstr("/config.json does not exist"));
  const auto nowhere = find_model_files("/nowhere");
  ASSERT_FALSE(nowhere.ok());
  EXPECT_EQ(nowhere.error().code, Code::kNotFound);
}

TEST_F(ModelDirectory, SupersetCard) {
  write("generation_config.json", R"({"bos_token_id":1})");
  write("chat_template.jinja", "{{ y }}");
  ModelCard inputs = card();
  inputs.context_length = 2048;
  inputs.runtime.total_kv_blocks = 100;
  inputs.runtime.max_num_seqs = 64;
  inputs.runtime.max_num_batched_tokens = 8192;
  inputs.runtime.tool_call_parser = "hermes";
  inputs.worker_type = WorkerType::kDecode;
  inputs.needs = {{WorkerType::kPrefill}};
  inputs.aliases = {"tiny"};
  inputs.user_data_json = R"({ "a" : 1 })";
  const Json json = encode(inputs);

  EXPECT_EQ(json["display_name"], "Tiny/Llama-1B");
  EXPECT_EQ(json["slug"], "tiny_llama-1b");
  EXPECT_EQ(json["source_model"], dir_.path());
  EXPECT_EQ(json["source_path"], dir_.path());
  EXPECT_EQ(json["model_info"]["hf_config_json"]["path"], dir_ / "config.json");
  EXPECT_EQ(json["tokenizer"]["hf_tokenizer_json"]["size"], 2);
  const Json& tokenizer_config = json["prompt_formatter"]["hf_tokenizer_config_json"];
  EXPECT_THAT(tokenizer_config["checksum"].get<std::string>(), testing::MatchesRegex("blake3:[0-9a-f]+"));
  EXPECT_EQ(tokenizer_config["checksum"].get<std::string>().size(), 7U + 64U);
  EXPECT_EQ(json["gen_config"]["hf_generation_config_json"]["path"], dir_ / "generation_config.json");

  const Json& chat_template = json["chat_template_file"]["hf_chat_template"];
  EXPECT_EQ(chat_template["is_custom"], false);
  EXPECT_EQ(chat_template["file"]["path"], dir_ / "chat_template.jinja");
  EXPECT_EQ(chat_template["path"], chat_template["file"]["path"]);
  EXPECT_EQ(chat_template["checksum"], chat_template["file"]["checksum"]);

  EXPECT_EQ(json["context_length"], 2048);
  EXPECT_EQ(json["architectural_max_context_length"], 4096);
  EXPECT_EQ(json["kv_cache_block_size"], 32);
  EXPECT_EQ(json["migration_limit"], 0);
  EXPECT_EQ(json["model_type"], "Chat | Completions");
  EXPECT_EQ(json["model_input"], "Tokens");
  EXPECT_EQ(json["worker_type"], "decode");
  EXPECT_EQ(json["needs"], Json::parse(R"([["prefill"]])"));
  EXPECT_EQ(json["aliases"], Json::parse(R"(["tiny"])"));
  EXPECT_EQ(json["user_data"], Json::parse(R"({"a":1})"));
  EXPECT_TRUE(json["media_decoder"].is_null());
  EXPECT_EQ(json["runtime_config"], Json::parse(R"({"context_length":2048,"total_kv_blocks":100,"max_num_seqs":64,
      "max_num_batched_tokens":8192,"tool_call_parser":"hermes","reasoning_parser":null,
      "tool_call_arguments_format":"json_string","structural_tag_mode":"off","structural_tag_scope":"auto",
      "structural_tag_schema":"auto","exclude_tools_when_tool_choice_none":true,"data_parallel_start_rank":0,
      "data_parallel_size":1,"enable_local_indexer":true,"enable_eagle":false,"runtime_data":{"token_budget":
      {"combined_limit":2048,"reject_prompt_overflow":true,"reject_total_overflow":false}}})"));
}

TEST_F(ModelDirectory, HasEveryMemberOfOfficialCards) {
  write("generation_config.json", "{}");
  ModelCard inputs = card();
  const Json json = encode(inputs);
  for (const char* version : kGoldenVersions) {
    const std::string folder = std::string(DYN_SOURCE_DIR) + "/tests/golden/wire/" + version + "/records/v1/mdc";
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      std::ifstream in(entry.path());
      const Json official = Json::parse(in)["card_json"];
      for (const auto& [name, value] : official.items()) {
        ASSERT_TRUE(json.contains(name)) << version << " " << name;
        EXPECT_STREQ(json[name].type_name(), value.type_name()) << name;
        if (name == "runtime_config") {
          for (const auto& [member, unused] : value.items()) EXPECT_TRUE(json[name].contains(member)) << member;
        }
      }
    }
  }
}

TEST_F(ModelDirectory, CustomChatTemplate) {
  write("chat_template.jinja", "the model's own");
  write("mine.jinja", "mine");
  const ModelFiles found = files(dir_ / "mine.jinja");
  ModelCard inputs = card();
  inputs.files = found;
  const Json chat_template = encode(inputs)["chat_template_file"]["hf_chat_template"];
  EXPECT_EQ(chat_template["is_custom"], true);
  EXPECT_EQ(chat_template["path"], dir_ / "mine.jinja");
}

TEST_F(ModelDirectory, TypesFollowTemplateAndRole) {
  EXPECT_EQ(resolve_model_type(card()), "Chat | Completions");
  ModelCard prefill = card();
  prefill.worker_type = WorkerType::kPrefill;
  EXPECT_EQ(resolve_model_type(prefill), "Prefill");
  prefill.worker_type = WorkerType::kEncode;
  EXPECT_EQ(resolve_model_type(prefill), "");

  write("tokenizer_config.json", R"({"chat_template":null})");
  EXPECT_EQ(resolve_model_type(card()), "Completions");
  ModelCard forced = card();
  forced.model_type = "Chat";
  EXPECT_EQ(encode(forced)["model_type"], "Chat");

  std::filesystem::remove(dir_ / "tokenizer_config.json");
  EXPECT_EQ(encode(card())["model_type"], "Completions");
  EXPECT_FALSE(encode(card()).contains("prompt_formatter"));
  forced = card();
  forced.model_type = "Completions | Chat";
  const auto refused = encode_model_card(forced);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("/tokenizer_config.json"));
}

TEST_F(ModelDirectory, RefusesWhatCannotBePublished) {
  const auto error = [&](auto change) {
    ModelCard inputs = card();
    change(inputs);
    const auto text = encode_model_card(inputs);
    return text.ok() ? "" : text.error().message;
  };
  EXPECT_THAT(error([](ModelCard& c) { c.display_name = ""; }), HasSubstr("no name"));
  EXPECT_THAT(error([](ModelCard& c) { c.display_name = "///"; }), HasSubstr("no letter or digit"));
  EXPECT_THAT(error([](ModelCard& c) { c.kv_cache_block_size = 0; }), HasSubstr("block size"));
  EXPECT_THAT(error([](ModelCard& c) { c.files = {}; }), HasSubstr("config.json"));
  EXPECT_THAT(error([](ModelCard& c) { c.user_data_json = "{"; }), HasSubstr("user_data"));
  EXPECT_THAT(error([](ModelCard& c) { c.model_type = "Prefill | Chat"; }), HasSubstr("Prefill"));
}

}  // namespace
}  // namespace dyn::llm

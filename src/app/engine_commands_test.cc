#include "app/engine_commands.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "app/cli.h"
#include "base/test_support.h"

namespace dyn::app {
namespace {

using ::testing::HasSubstr;

constexpr char kConfig[] = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
  "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
  "torch_dtype": "bfloat16", "eos_token_id": 2, "bos_token_id": 1, "vocab_size": 100, "max_position_embeddings": 64})";

struct Outcome {
  int status = 0;
  std::string out;
  std::string err;
};

template <class Command>
Outcome run(Command command, const std::vector<std::string>& args) {
  const std::vector<std::string_view> views(args.begin(), args.end());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.status = command(views);
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

class EngineCommands : public ::testing::Test {
 protected:
  EngineCommands() { dir_.write("model/config.json", kConfig); }
  const TempDir dir_;
  const std::string model_ = dir_ / "model";
  const std::string engine_ = dir_ / "engine";
};

TEST_F(EngineCommands, BuildMakesWhatEngineInfoPrints) {
  const Outcome built = run(run_build, {"--model", model_, "--output=" + engine_, "--load-format", "dummy",
                                        "--cpu-path", "fast", "--threads", "2"});
  ASSERT_EQ(built.status, 0) << built.err;
  EXPECT_THAT(built.out, HasSubstr("dynamo-trtllm --model " + engine_));

  const Outcome table = run(run_engine_info, {engine_, "--tensors", "--verify"});
  ASSERT_EQ(table.status, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("LlamaForCausalLM"));
  EXPECT_THAT(table.out, HasSubstr("packed-bf16 of BF16"));
  EXPECT_THAT(table.out, HasSubstr("none: random weights"));
  EXPECT_THAT(table.out, HasSubstr("[128, 64]"));
  EXPECT_THAT(table.out, HasSubstr("model.layers.1.self_attn.qkv_proj.weight"));
  EXPECT_THAT(table.out, HasSubstr("as they were written"));

  const auto json = nlohmann::json::parse(run(run_engine_info, {"--json", engine_}).out);
  EXPECT_EQ(json["format"], 1);
  EXPECT_EQ(json["layout"], "packed-bf16");
  EXPECT_EQ(json["tensors"][0]["name"], "model.embed_tokens.weight");
  EXPECT_EQ(json["tensors"][0]["shape"], nlohmann::json({100, 64}));
}

TEST_F(EngineCommands, RefuseWrongArguments) {
  for (const std::vector<std::string>& args :
       std::vector<std::vector<std::string>>{{},
                                             {"--model", "m"},
                                             {"--output", "o"},
                                             {"--model", "m", "--output", "o", "--weight-dtype", "fp4"},
                                             {"--model", "m", "--output", "o", "--nonsense"}}) {
    const Outcome outcome = run(run_build, args);
    EXPECT_EQ(outcome.status, kExitConfiguration);
    EXPECT_THAT(outcome.err, HasSubstr("see --help"));
  }
  EXPECT_EQ(run(run_engine_info, {}).status, kExitConfiguration);
  EXPECT_EQ(run(run_engine_info, {"a", "b"}).status, kExitConfiguration);
  EXPECT_EQ(run(run_engine_info, {"--json=1", "a"}).status, kExitConfiguration);
  EXPECT_THAT(run(run_build, {"--help"}).out, HasSubstr("--weight-dtype"));
  EXPECT_THAT(run(run_engine_info, {"-h"}).out, HasSubstr("--verify"));
}

TEST_F(EngineCommands, TellWhyAFolderIsNone) {
  const Outcome none = run(run_engine_info, {model_});
  EXPECT_EQ(none.status, 1);
  EXPECT_THAT(none.err, HasSubstr("not an engine folder"));
  dir_.write("trt/config.json", R"({"version": "1.2.1", "pretrained_config": {}, "build_config": {}})");
  dir_.write("trt/rank0.engine", "x");
  EXPECT_THAT(run(run_engine_info, {dir_ / "trt"}).err, HasSubstr("TensorRT-LLM 1.2.1 engine"));
  EXPECT_THAT(run(run_build, {"--model", dir_ / "trt", "--output", engine_}).err, HasSubstr("Hugging Face folder"));
}

}  // namespace
}  // namespace dyn::app

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "app/bench_arguments.h"
#include "app/bench_engine_ceilings.h"
#include "app/bench_engine_measure.h"
#include "app/bench_engine_report.h"
#include "app/bench_stream.h"
#include "base/test_support.h"

namespace dyn::app::bench {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Sizes apart from each other, so that a mixed-up one shows.
native::ModelConfig small_model() {
  native::ModelConfig config;
  config.vocab_size = 100;
  config.hidden_size = 32;
  config.intermediate_size = 80;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  return config;
}

TEST(StepFlops, OneTokenWithoutSampleIsTheLayersAlone) {
  native::StepPlan plan;
  plan.tokens = {1};
  plan.row_offsets = {0, 1};
  plan.context_lens = {1};
  const uint64_t weights = 32U * (64 + 2 * 32) + 64U * 32 + 3U * 32 * 80;
  EXPECT_EQ(step_flops(small_model(), plan), 3U * (2 * weights + 4U * 64));
  plan.samples.push_back({.row = 0});
  EXPECT_EQ(step_flops(small_model(), plan), 3U * (2 * weights + 4U * 64) + 2U * 32 * 100);
}

TEST(StepFlops, APromptNeedsTheSameWholeOrInChunks) {
  const auto chunk = [](uint32_t tokens, int32_t context) {
    native::StepPlan plan;
    plan.tokens.assign(tokens, 1);
    plan.row_offsets = {0, tokens};
    plan.context_lens = {context};
    return step_flops(small_model(), plan);
  };
  EXPECT_EQ(chunk(10, 10), chunk(4, 4) + chunk(5, 9) + chunk(1, 10));
}

TEST(ReadBuffer, IsLargerThanTheCacheAndLeavesMemory) {
  EXPECT_EQ(read_buffer_bytes(0, 65'536 * kMiB), 256 * kMiB);
  EXPECT_EQ(read_buffer_bytes(100 * kMiB, 65'536 * kMiB), 400 * kMiB);
  EXPECT_EQ(read_buffer_bytes(800 * kMiB, 65'536 * kMiB), 1024 * kMiB);
  EXPECT_EQ(read_buffer_bytes(100 * kMiB, 400 * kMiB), 100 * kMiB);
  EXPECT_EQ(read_buffer_bytes(100 * kMiB, 0), kMiB);
}

TEST(DecodeShape, StaysWithinContextAndPool) {
  for (const uint32_t positions : {1U, 2U, 17U, 64U, 40'960U}) {
    for (const uint32_t batch : {1U, 64U, 1024U}) {
      const DecodeShape shape = decode_shape(batch, positions);
      EXPECT_GE(shape.prompt, 1U);
      EXPECT_GE(shape.steps, 1U);
      if (positions > 1) EXPECT_LE(shape.prompt + shape.steps, positions);
    }
  }
  EXPECT_GT(decode_shape(1, 40'960).steps, decode_shape(64, 40'960).steps);
}

TEST(PagesNeeded, IsTheLargestRunAlone) {
  EXPECT_EQ(pages_needed({33, 64}, {}, 32), 2U);
  EXPECT_EQ(pages_needed({1}, {{.batch = 3, .prompt = 16, .steps = 17}}, 32), 6U);
  EXPECT_EQ(pages_needed({400}, {{.batch = 3, .prompt = 16, .steps = 17}}, 32), 13U);
}

TEST(Report, SharesAreOfTheCeilings) {
  EngineReport report;
  report.ceilings = {.read_bytes_per_s = 20e9, .flops_per_s = 100e9, .all = {{"portable", 100e9}}};
  report.decodes.push_back({.batch = 2,
                            .tokens = 8,
                            .seconds = 2,
                            .samples_us = {400'000, 500'000, 500'000, 600'000},
                            .work = {.bytes = 20'000'000'000, .flops = 50'000'000'000}});
  const auto json = nlohmann::json::parse(to_json(report));
  const auto& run = json["decode"][0];
  EXPECT_DOUBLE_EQ(run["tokens_per_s"], 4);
  EXPECT_DOUBLE_EQ(run["itl_ms"]["p50"], 500);
  EXPECT_DOUBLE_EQ(run["itl_ms"]["p99"], 600);
  EXPECT_DOUBLE_EQ(run["bytes_per_sample"], 5e9);
  EXPECT_DOUBLE_EQ(run["share_of_read_bandwidth"], 0.5);
  EXPECT_DOUBLE_EQ(run["share_of_fma_peak"], 0.25);
  EXPECT_NE(to_table(report).find("decode"), std::string::npos);
}

TEST(Report, CostIsBesideItsFloor) {
  EngineReport report;
  report.ceilings = {.read_bytes_per_s = 20e9, .flops_per_s = 100e9};
  // 2 GB and 1 GFLOP a step: 100 ms and 10 ms.
  report.cost.push_back({.context = 64,
                         .run = {.batch = 2,
                                 .seconds = 0.6,
                                 .samples_us = {120'000, 150'000, 330'000},
                                 .work = {.bytes = 6'000'000'000, .flops = 3'000'000'000}}});
  EXPECT_DOUBLE_EQ(floor_s(report.cost[0], report.ceilings), 0.1);
  const auto point = nlohmann::json::parse(to_json(report))["cost"][0];
  EXPECT_DOUBLE_EQ(point["ratio_to_floor"], 1.5);
  EXPECT_DOUBLE_EQ(point["step_ms"]["best"], 120);
  EXPECT_NE(to_markdown(report).find("| 64 | 150.00 (**1.50**) |"), std::string::npos) << to_markdown(report);
  report.ceilings.flops_per_s = 5e9;
  EXPECT_DOUBLE_EQ(floor_s(report.cost[0], report.ceilings), 0.2);
  EXPECT_NE(to_markdown(report).find("| 64 | 150.00 (0.75) |"), std::string::npos);
}

TEST(Cost, PagesOfTheLargestShapeThatFits) {
  const CostShapes shapes{.contexts = {1, 64, 100}, .batches = {1, 8}};
  EXPECT_EQ(cost_pages(shapes, 32, 1'000), 32U);
  EXPECT_EQ(cost_pages(shapes, 32, 31), 16U);
  EXPECT_EQ(cost_pages(shapes, 32, 7), 4U);
}

TEST(Loads, AreReadOrRefused) {
  const auto loads = parse_engine_loads("--loads", "1:512:1,8:128:64");
  ASSERT_TRUE(loads.ok());
  ASSERT_EQ(loads.value().size(), 2U);
  EXPECT_EQ(loads.value()[1].sequences, 8U);
  EXPECT_EQ(loads.value()[1].input, 128U);
  EXPECT_EQ(loads.value()[1].output, 64U);
}

TEST(Report, SaysWhenCeilingsWereDisturbed) {
  EngineReport report;
  report.ceilings = {.threads = 2, .cpus = 1.0};
  EXPECT_NE(to_table(report).find("1.0 of 2 CPUs"), std::string::npos);
  report.ceilings.cpus = 1.95;
  EXPECT_EQ(to_table(report).find("of 2 CPUs"), std::string::npos);
}

TEST(Report, WithoutCeilingsThereAreNoShares) {
  EngineReport report;
  report.prompts.push_back({.prompt = 4});
  const auto json = nlohmann::json::parse(to_json(report));
  EXPECT_DOUBLE_EQ(json["time_to_first_token"][0]["share_of_fma_peak"], 0);
}

int run(std::vector<std::string_view> args) {
  args.insert(args.begin(), "engine");
  return run_bench(args);
}

TEST(EngineCommandLine, WrongArgumentsAreStatusTwo) {
  EXPECT_EQ(run({}), 2);  // no model
  for (const std::vector<std::string_view>& wrong : std::vector<std::vector<std::string_view>>{
           {"--isa", "sse9"},
           {"--isa"},
           {"--load-format", "gguf"},
           {"--threads", "0"},
           {"--threads", "1x"},
           {"--batch-sizes", "1,0"},
           {"--batch-sizes", "1,,2"},
           {"--batch-sizes", "1025"},
           {"--prompt-lengths", ""},
           {"--measure", "ttft,speed"},
           {"--measure", ""},
           {"--loads", "1:2"},
           {"--loads", "1:2:3:4"},
           {"--loads", "0:2:3"},
           {"--loads", "1:2:3,"},
           {"--contexts", "0"},
           {"--max-cost-ratio", "-1"},
           {"--seconds", "nan"},
           {"--seconds", "0"},
           {"--json=1"},
           {"--streams", "1"},  // an option of bench stream
           {"8"},
       }) {
    std::vector<std::string_view> args = {"--model", "somewhere"};
    args.insert(args.end(), wrong.begin(), wrong.end());
    EXPECT_EQ(run(args), 2) << wrong.front();
  }
  EXPECT_EQ(run({"--help"}), 0);
}

class EngineRuns : public testing::Test {
 protected:
  EngineRuns() {
    std::ofstream(dir_ / "config.json") << R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
      "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
      "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
      "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true, "torch_dtype": "bfloat16"})";
  }
  TempDir dir_;
};

TEST_F(EngineRuns, MeasuresEveryPromptAndBatch) {
  testing::internal::CaptureStdout();
  const int status = run({"--model", dir_.path(), "--load-format", "dummy", "--isa", "portable", "--threads", "2",
                          "--prompt-lengths", "4,60,64", "--batch-sizes", "1,40", "--seconds", "0.002", "--loads",
                          "1:8:1,3:8:5", "--contexts", "1,33,64,65", "--json"});
  const std::string out = testing::internal::GetCapturedStdout();
  ASSERT_EQ(status, 0);
  const auto json = nlohmann::json::parse(out);
  EXPECT_EQ(json["isa"], "portable");
  EXPECT_EQ(json["threads"], 2);
  EXPECT_TRUE(json["dummy_weights"]);
  ASSERT_EQ(json["time_to_first_token"].size(), 2U);  // 64 tokens leave no room for an answer
  EXPECT_EQ(json["time_to_first_token"][1]["prompt_tokens"], 60);
  ASSERT_EQ(json["decode"].size(), 2U);
  EXPECT_EQ(json["decode"][1]["batch"], 40);
  for (const char* kind : {"time_to_first_token", "decode"}) {
    for (const auto& row : json[kind]) {
      EXPECT_GT(row["tokens_per_s"], 0);
      EXPECT_GT(row["bytes_per_s"], 0);
      EXPECT_GT(row["share_of_read_bandwidth"], 0);
      EXPECT_GT(row["share_of_fma_peak"], 0);
    }
  }
  EXPECT_GT(json["memory"]["weight_bytes"], 0);
  EXPECT_GT(json["memory"]["resident_peak_bytes"], 0);
  EXPECT_GT(json["start"]["first_token_s"], 0);

  std::vector<std::pair<unsigned, unsigned>> points;
  for (const auto& point : json["cost"]) {
    points.emplace_back(point["context"], point["batch"]);
    EXPECT_GT(point["step_ms"]["p50"], 0);
    EXPECT_GT(point["floor_ms"], 0);
    EXPECT_GE(point["steps"], kLeastCostSteps);
  }
  // 65 is beyond the model's context.
  EXPECT_EQ(points,
            (std::vector<std::pair<unsigned, unsigned>>{{1, 1}, {1, 40}, {33, 1}, {33, 40}, {64, 1}, {64, 40}}));
  EXPECT_GT(json["cost"][5]["bytes_per_sample"], json["cost"][3]["bytes_per_sample"]);

  const auto& loads = json["engine"]["loads"];
  ASSERT_EQ(loads.size(), 2U);
  EXPECT_EQ(loads[1]["sequences"], 3);
  EXPECT_GE(loads[1]["rounds"], 1);
  EXPECT_GT(loads[1]["output_throughput"], 0);
  EXPECT_GT(loads[1]["tpot_ms"]["p50"], 0);
  EXPECT_GT(loads[0]["ttft_ms"]["p50"], 0);
  EXPECT_GT(json["engine"]["kv_pool_bytes"], 0);
  EXPECT_EQ(json["engine"]["weight_bytes"], json["memory"]["weight_bytes"]);
  EXPECT_GT(json["engine"]["first_token_s"], 0);
}

TEST_F(EngineRuns, OnlyWhatIsAskedFor) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(run({"--model", dir_.path(), "--load-format", "dummy", "--isa", "portable", "--threads", "1", "--measure",
                 "decode", "--batch-sizes", "2", "--seconds", "0.002", "--markdown"}),
            0);
  const std::string out = testing::internal::GetCapturedStdout();
  EXPECT_NE(out.find("| batch |"), std::string::npos);
  EXPECT_EQ(out.find("| prompt |"), std::string::npos);
  EXPECT_EQ(out.find("| context |"), std::string::npos);
  EXPECT_EQ(out.find("start-up"), std::string::npos);
}

TEST_F(EngineRuns, ALoadBeyondTheContextIsRefused) {
  EXPECT_EQ(run({"--model", dir_.path(), "--load-format", "dummy", "--measure", "load", "--loads", "1:60:5"}), 1);
}

TEST_F(EngineRuns, WhatCannotRunIsStatusOne) {
  EXPECT_EQ(run({"--model", dir_ / "absent"}), 1);
  EXPECT_EQ(run({"--model", dir_.path()}), 1);  // no weights
  EXPECT_EQ(run({"--model", dir_.path(), "--load-format", "dummy", "--prompt-lengths", "64"}), 1);
}

}  // namespace
}  // namespace dyn::app::bench

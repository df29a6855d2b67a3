// The CUDA executor on a real GPU, against the CPU executor (fp32, the oracle) and against transformers' golden files.
// A program of its own: CI has no GPU; scripts/gpu-check runs it where one is.
//
// What is compared: with every sequence forced along the oracle's tokens, the log-probabilities of the best
// alternatives of every step; and greedy tokens wherever the oracle's margin is larger than bfloat16 can turn over.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "native/exec/cpu/cpu_executor.h"
#include "native/exec/cuda/cuda_executor.h"
#include "native/exec/step_driver.h"
#include "native/model/model_dir.h"
#include "native/testing/golden_models.h"

namespace dyn::native {
namespace {

using Sequence = StepDriver::Sequence;

// How far log-probabilities of bfloat16 inputs may be from fp32. Where two experts are nearly as likely, either may be
// chosen, and what follows differs by whole units: of such models the mean counts.
struct Tolerance {
  double mean = 0;
  double max = 0;
  double margin = 0;  // of the oracle's two best tokens; above it the same one must be chosen
};
constexpr double kAny = 1e9;
constexpr Tolerance kDummyDense{.mean = 0.012, .max = 0.08, .margin = 0.1};
constexpr Tolerance kDummyExperts{.mean = 0.04, .max = kAny, .margin = kAny};

constexpr ExecutorLimits kLimits{
    .max_batch_size = 24, .max_num_tokens = 1024, .tokens_per_block = 32, .num_pages = 300};

// Differences of log-probabilities, summed up.
struct Spread {
  double sum = 0;
  double max = 0;
  size_t count = 0;
  void add(double difference) {
    sum += std::abs(difference);
    max = std::max(max, std::abs(difference));
    ++count;
    finite &= std::isfinite(difference);
  }
  bool finite = true;
  [[nodiscard]] double mean() const { return count == 0 ? 0 : sum / static_cast<double>(count); }
};

void expect_close(const Spread& spread, const Tolerance& tolerance, const std::string& what) {
  std::printf("[ figures  ] %-60s mean %.5f  max %.5f  of %zu\n", what.c_str(), spread.mean(), spread.max,
              spread.count);
  EXPECT_TRUE(spread.finite) << what;
  EXPECT_GT(spread.count, 0U) << what;
  EXPECT_LT(spread.mean(), tolerance.mean) << what;
  EXPECT_LT(spread.max, tolerance.max) << what;
}

struct Shape {
  const char* name;
  ModelConfig config;
};

ModelConfig base(uint32_t heads, uint32_t kv_heads, uint32_t head_dim) {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = 384;
  c.hidden_size = 256;
  c.intermediate_size = 384;
  c.num_layers = 3;
  c.num_heads = heads;
  c.num_kv_heads = kv_heads;
  c.head_dim = head_dim;
  c.max_positions = 8192;
  return c;
}

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  all.push_back({"d64_group3", base(6, 2, 64)});
  all.push_back({"d32", base(4, 2, 32)});
  all.push_back({"d48", base(4, 2, 48)});
  all.push_back({"d80_group1", base(2, 2, 80)});
  all.push_back({"d96", base(4, 2, 96)});
  all.push_back({"d128_group8", base(8, 1, 128)});
  all.push_back({"d64_group12", base(12, 1, 64)});
  Shape qwen3{"d128_qk_norm_tied", base(4, 2, 128)};
  qwen3.config.qk_norm = true;
  qwen3.config.tie_embeddings = true;
  all.push_back(qwen3);
  Shape biases{"biases_everywhere", base(4, 2, 64)};
  biases.config.qkv_bias = biases.config.o_bias = biases.config.mlp_bias = true;
  all.push_back(biases);
  Shape windows{"d64_windows", base(4, 2, 64)};
  windows.config.layers = {{.window = 100}, {.window = 37}, {.window = 513}};
  all.push_back(windows);
  Shape gemma{"d256_gemma", base(4, 1, 256)};
  gemma.config.layers = {{.window = 32}, {}, {.window = 32}};
  gemma.config.local_rope = Rope{.theta = 1e4F};
  gemma.config.rope = {.theta = 1e6F, .scaling = RopeScaling::kLinear, .factor = 8};
  gemma.config.activation = Activation::kGeluTanh;
  gemma.config.post_norms = gemma.config.qk_norm = gemma.config.tie_embeddings = true;
  gemma.config.embedding_scale = 16;
  gemma.config.query_scalar = 168;
  all.push_back(gemma);
  Shape experts{"experts", base(4, 2, 64)};
  experts.config.layers = {{.experts = true}, {}, {.experts = true}};
  experts.config.experts = {.count = 8, .chosen = 3, .intermediate_size = 96, .normalize = true};
  all.push_back(experts);
  Shape large{"hidden_2048_vocab_5000", base(16, 4, 128)};
  large.config.hidden_size = 2048;
  large.config.intermediate_size = 3072;
  large.config.vocab_size = 5000;
  large.config.num_layers = 2;
  all.push_back(large);
  return all;
}

std::unique_ptr<Executor> make_cuda(const ModelConfig& config, const ExecutorLimits& limits, bool graphs = true,
                                    const std::string& directory = {}) {
  auto device = CudaDevice::open({});
  if (!device) {
    ADD_FAILURE() << device.error().message;
    return nullptr;
  }
  auto weights =
      upload_weights(*device, config, directory, directory.empty() ? LoadFormat::kDummy : LoadFormat::kSafetensors);
  if (!weights) {
    ADD_FAILURE() << weights.error().message;
    return nullptr;
  }
  auto executor = make_cuda_executor(std::move(*device), config, *weights, limits,
                                     {.max_seq_len = config.max_positions, .choose_pages = {}, .graphs = graphs});
  if (!executor) {
    ADD_FAILURE() << executor.error().message;
    return nullptr;
  }
  return std::move(*executor);
}

std::unique_ptr<Executor> make_cpu(const ModelConfig& config) {
  auto weights = load_weights(config, "", {.format = LoadFormat::kDummy});
  EXPECT_TRUE(weights.ok());
  auto executor = make_cpu_executor(config, std::move(*weights), kLimits, {});
  EXPECT_TRUE(executor.ok());
  return std::move(*executor);
}

std::vector<TokenId> prompt_of(size_t size, TokenId seed, uint32_t vocab) {
  std::vector<TokenId> prompt(size);
  for (size_t i = 0; i < size; ++i) prompt[i] = static_cast<TokenId>((i * i * 7 + 31 * i + seed * 97) % vocab);
  return prompt;
}

constexpr size_t kPrompts[] = {1, 2, 17, 33, 64, 129, 300, 700};
constexpr size_t kSteps = 6;
constexpr int32_t kTop = 20;

// What the oracle found for a prompt.
struct Expected {
  std::vector<TokenId> prompt;
  std::vector<TokenId> tokens;
  std::vector<std::vector<engine::TopLogprob>> top;  // [step]: as many alternatives as are known
};

std::vector<Expected> oracle(const ModelConfig& config) {
  auto cpu = make_cpu(config);
  StepDriver driver(*cpu);
  std::vector<Expected> all;
  TokenId seed = 0;
  for (const size_t size : kPrompts) {
    Sequence& s = driver.add(
        {.prompt = prompt_of(size, ++seed, config.vocab_size), .logprobs = static_cast<int32_t>(config.vocab_size)});
    driver.generate(s, kSteps);
    all.push_back({s.options.prompt, s.generated, s.top});
    driver.release(s);
  }
  return all;
}

void compare_step(const Expected& expected, size_t step, const Sequence& s, double margin, Spread& spread) {
  ASSERT_FALSE(s.not_finite);
  const auto& known = expected.top[step];
  for (const engine::TopLogprob& want : known) {
    for (const engine::TopLogprob& got : s.top[step]) {
      if (got.id == want.id) spread.add(static_cast<double>(got.logprob) - static_cast<double>(want.logprob));
    }
  }
  if (static_cast<double>(known[0].logprob - known[1].logprob) > margin)
    EXPECT_EQ(s.generated[step], expected.tokens[step]) << "step " << step << " of a prompt of " << s.prompt_size;
}

// After a step: the oracle's token instead of the sampled one.
void force(const Expected& expected, Sequence& s, double margin, Spread& spread) {
  const size_t step = s.generated.size() - 1;
  compare_step(expected, step, s, margin, spread);
  s.tokens.back() = expected.tokens[step];
}

Spread run_alone(Executor& executor, const std::vector<Expected>& all, size_t chunk, double margin) {
  Spread spread;
  StepDriver driver(executor);
  for (const Expected& expected : all) {
    Sequence& s = driver.add({.prompt = expected.prompt, .logprobs = kTop});
    while (s.generated.size() < expected.tokens.size()) {
      const size_t before = s.generated.size();
      driver.step({{&s, std::min(s.left(), chunk)}});
      if (s.generated.size() > before) force(expected, s, margin, spread);
    }
    driver.release(s);
  }
  return spread;
}

// All together: later ones join later, so that decode rows and chunks of every size share steps; decode rows not first.
Spread run_mixed(Executor& executor, const std::vector<Expected>& all, size_t chunk, double margin) {
  Spread spread;
  StepDriver driver(executor);
  std::vector<Sequence*> sequences;
  for (const Expected& expected : all) sequences.push_back(&driver.add({.prompt = expected.prompt, .logprobs = kTop}));
  for (size_t round = 0;; ++round) {
    std::vector<std::pair<Sequence*, size_t>> rows;
    std::vector<size_t> which;
    size_t left = executor.limits().max_num_tokens;
    for (size_t k = 0; k < all.size(); ++k) {
      const size_t i = (k + round) % all.size();
      if (sequences[i]->generated.size() >= all[i].tokens.size() || round < i) continue;
      const size_t count = std::min({sequences[i]->left(), chunk, left});
      if (count == 0) continue;
      left -= count;
      rows.emplace_back(sequences[i], count);
      which.push_back(i);
    }
    if (rows.empty() && round >= all.size()) return spread;
    if (rows.empty()) continue;
    std::vector<size_t> before;
    for (const auto& [s, count] : rows) before.push_back(s->generated.size());
    driver.step(rows);
    for (size_t r = 0; r < rows.size(); ++r) {
      if (rows[r].first->generated.size() > before[r]) force(all[which[r]], *rows[r].first, margin, spread);
    }
  }
}

class AgainstCpu : public testing::TestWithParam<Shape> {};

TEST_P(AgainstCpu, LogProbabilitiesAreClose) {
  const ModelConfig& config = GetParam().config;
  const std::string name = GetParam().name;
  const Tolerance tolerance = config.experts.count > 0 ? kDummyExperts : kDummyDense;
  const auto expected = oracle(config);
  const auto alone = [&](Executor& executor, size_t chunk, const char* what) {
    expect_close(run_alone(executor, expected, chunk, tolerance.margin), tolerance, name + what);
  };
  const auto mixed = [&](Executor& executor, size_t chunk, const char* what) {
    expect_close(run_mixed(executor, expected, chunk, tolerance.margin), tolerance, name + what);
  };
  auto executor = make_cuda(config, kLimits);
  ASSERT_NE(executor, nullptr);
  alone(*executor, SIZE_MAX, ", alone");
  alone(*executor, 50, ", alone, chunks of 50");
  mixed(*executor, 1024, ", mixed");
  mixed(*executor, 19, ", mixed, chunks of 19");
  executor.reset();
  executor = make_cuda(config, kLimits, false);
  ASSERT_NE(executor, nullptr);
  mixed(*executor, 100, ", mixed, no graphs");
}

INSTANTIATE_TEST_SUITE_P(Shapes, AgainstCpu, testing::ValuesIn(shapes()),
                         [](const auto& info) { return std::string(info.param.name); });

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, IsAsCloseAsBfloat16Allows) {
  const std::string directory = test_model(std::string("random/") + GetParam());
  const auto config = load_model_config(directory);
  ASSERT_TRUE(config.ok()) << config.error().message << "\nscripts/models makes the model.";
  std::ifstream file(golden_file(std::string("random/") + GetParam() + ".json"));
  const auto golden = nlohmann::json::parse(file);
  std::vector<Expected> all;
  Spread transformers;  // bfloat16 beside fp32, while both have chosen the same tokens
  for (const auto& prompt : golden["prompts"]) {
    Expected& expected = all.emplace_back();
    expected.prompt = prompt["ids"].get<std::vector<TokenId>>();
    expected.tokens = prompt["float32"]["tokens"].get<std::vector<TokenId>>();
    bool same = true;
    for (size_t step = 0; step < expected.tokens.size(); ++step) {
      const auto top = prompt["float32"]["top"][step].get<std::vector<double>>();
      const auto other = prompt["bfloat16"]["top"][step].get<std::vector<double>>();
      auto& alternatives = expected.top.emplace_back();
      for (size_t i = 0; i + 1 < top.size(); i += 2) {
        alternatives.push_back({.id = static_cast<TokenId>(top[i]), .logprob = static_cast<float>(top[i + 1])});
        for (size_t k = 0; same && k + 1 < other.size(); k += 2) {
          if (other[k] == top[i]) transformers.add(other[k + 1] - top[i + 1]);
        }
      }
      same = same && prompt["bfloat16"]["tokens"][step] == prompt["float32"]["tokens"][step];
    }
  }
  ASSERT_EQ(all.size(), 6U);
  const std::string name = GetParam();
  std::printf("[ figures  ] %-60s mean %.5f  max %.5f  of %zu\n", (name + ", transformers in bfloat16").c_str(),
              transformers.mean(), transformers.max, transformers.count);
  auto executor = make_cuda(*config, kLimits, true, directory);
  ASSERT_NE(executor, nullptr);
  // No worse than the same arithmetic elsewhere.
  const bool experts = config->experts.count > 0;
  const Tolerance tolerance{.mean = transformers.mean(),
                            .max = experts ? kAny : 1.5 * transformers.max,
                            .margin = experts ? kAny : 2 * transformers.max};
  for (const size_t chunk : {SIZE_MAX, size_t{7}}) {
    expect_close(run_alone(*executor, all, chunk, tolerance.margin), tolerance,
                 name + (chunk == 7 ? ", chunks of 7" : ", alone"));
  }
  expect_close(run_mixed(*executor, all, 64, tolerance.margin), tolerance, name + ", mixed");
}

INSTANTIATE_TEST_SUITE_P(Random, Golden,
                         testing::Values("gemma3", "gemma3_linear", "llama3", "mistral", "phi3", "qwen2", "qwen3",
                                         "qwen3_moe", "qwen3_moe_mixed"),
                         [](const auto& info) { return std::string(info.param); });

ModelConfig sampling_model() {
  ModelConfig config = base(4, 2, 64);
  config.vocab_size = 3000;
  return config;
}

// The same rows sampled on the device and, because they ask for one alternative too many, by the host's Sampler.
TEST(CudaSampling, IsThatOfTheHost) {
  auto executor = make_cuda(sampling_model(), kLimits);
  ASSERT_NE(executor, nullptr);
  using Params = engine::SamplingParams;
  const Params cases[] = {
      {.temperature = 0},
      {.temperature = 1, .seed = 3},
      {.temperature = 0.7F, .top_k = 5, .seed = 4},
      {.temperature = 1.3F, .top_p = 0.8F, .seed = 5},
      {.temperature = 1, .top_k = 100, .top_p = 0.5F, .min_p = 0.01F, .seed = 6},
      {.temperature = 1, .min_p = 0.2F, .seed = 7},
      {.temperature = 0, .repetition_penalty = 1.5F},
      {.temperature = 0.8F, .repetition_penalty = 1.2F, .presence_penalty = 0.5F, .frequency_penalty = 0.7F, .seed = 8},
      {.temperature = 1, .seed = 9, .logit_bias = {{5, 3.0F}, {17, -INFINITY}, {9, 4.0F}}},
  };
  for (const Params& params : cases) {
    StepDriver driver(*executor);
    std::vector<Sequence*> device;
    std::vector<Sequence*> host;
    for (TokenId i = 0; i < 6; ++i) {
      const auto prompt = prompt_of(10, i, 3000);
      device.push_back(&driver.add({.prompt = prompt, .sampling = params, .logprobs = 20}));
      host.push_back(&driver.add({.prompt = prompt, .sampling = params, .logprobs = 21}));
    }
    for (int step = 0; step < 20; ++step) {
      std::vector<std::pair<Sequence*, size_t>> rows;
      for (size_t i = 0; i < device.size(); ++i) {
        rows.emplace_back(device[i], device[i]->left());
        rows.emplace_back(host[i], host[i]->left());
      }
      driver.step(rows);
    }
    for (size_t i = 0; i < device.size(); ++i) {
      EXPECT_EQ(device[i]->generated, host[i]->generated) << "temperature " << params.temperature;
      for (size_t step = 0; step < 20; ++step) {
        EXPECT_NEAR(device[i]->logprobs[step], host[i]->logprobs[step], 1e-4);
        for (size_t k = 0; k < 20; ++k) {
          EXPECT_EQ(device[i]->top[step][k].id, host[i]->top[step][k].id);
          EXPECT_NEAR(device[i]->top[step][k].logprob, host[i]->top[step][k].logprob, 1e-4);
        }
      }
    }
  }
}

// Two steps in flight, each naming the token of the one before, give what one at a time gives.
TEST(CudaPipeline, TakesTokensOfTheStepInFlight) {
  auto executor = make_cuda(sampling_model(), kLimits);
  ASSERT_NE(executor, nullptr);
  for (const bool on_host : {false, true}) {
    engine::SamplingParams params{.temperature = 1, .frequency_penalty = 0.5F, .seed = 5};
    if (on_host) params.bad_words = {{7}, {8, 9}};
    StepDriver driver(*executor);
    // The same batches: logits of other batches may differ in their last bits, and so may what is drawn from them.
    std::vector<Sequence*> sequences;
    for (TokenId i = 0; i < 3; ++i)
      sequences.push_back(&driver.add({.prompt = prompt_of(5, i, 3000), .sampling = params}));
    while (sequences[0]->generated.size() < 12) {
      driver.step({{sequences[0], sequences[0]->left()},
                   {sequences[1], sequences[1]->left()},
                   {sequences[2], sequences[2]->left()}});
    }
    std::vector<std::vector<TokenId>> expected;
    for (const Sequence* s : sequences) expected.push_back(s->generated);
    StepPlan plans[2];
    StepResult result;
    std::vector<std::vector<TokenId>> got(3);
    const auto collect = [&](uint32_t) {
      ASSERT_TRUE(executor->collect(result).ok());
      for (size_t r = 0; r < 3; ++r) got[r].push_back(result.tokens[r]);
    };
    for (uint32_t step = 0; step < 12; ++step) {
      StepPlan& plan = plans[step % 2];
      plan.clear();
      plan.row_offsets = {0};
      plan.page_offsets = {0};
      for (uint32_t r = 0; r < 3; ++r) {
        const auto prompt = prompt_of(5, r, 3000);
        if (step == 0) {
          static std::vector<TokenId> kept[3];
          kept[r] = prompt;
          plan.slot_starts.push_back({.slot = 10 + r, .sampling = params, .prompt = kept[r]});
          plan.tokens.insert(plan.tokens.end(), prompt.begin(), prompt.end());
          for (int32_t p = 0; p < 5; ++p) plan.positions.push_back(p);
        } else {
          plan.tokens.push_back(kTokenOfPreviousStep);
          plan.from_sample.push_back(r);
          plan.positions.push_back(static_cast<int32_t>(4 + step));
        }
        plan.row_offsets.push_back(static_cast<uint32_t>(plan.tokens.size()));
        plan.context_lens.push_back(static_cast<int32_t>(5 + step));
        plan.pages.push_back(static_cast<PageId>(290 + r));
        plan.page_offsets.push_back(r + 1);
        plan.samples.push_back({.row = r, .slot = 10 + r, .position = step});
      }
      ASSERT_TRUE(executor->enqueue(plan).ok());
      if (step > 0) collect(step - 1);
    }
    collect(11);
    EXPECT_EQ(got, expected) << (on_host ? "sampled by the host" : "sampled by the device");
  }
}

TEST(CudaPages, AreCopiedBeforeTheStep) {
  auto executor = make_cuda(sampling_model(), kLimits);
  ASSERT_NE(executor, nullptr);
  StepDriver driver(*executor);
  Sequence& s = driver.add({.prompt = prompt_of(40, 1, 3000), .logprobs = 5});
  driver.generate(s, 2);
  // The same sequence in copied pages: its first answer token again.
  StepPlan plan;
  plan.tokens = {s.generated[0]};
  plan.positions = {40};
  plan.row_offsets = {0, 1};
  plan.context_lens = {41};
  plan.pages = {s.pages[0] == 250 ? 252 : 250, 251};
  plan.page_offsets = {0, 2};
  plan.page_copies = {{.from = s.pages[0], .to = plan.pages[0]}, {.from = s.pages[1], .to = plan.pages[1]}};
  plan.slot_starts = {{.slot = 5, .sampling = {.temperature = 0}}};
  plan.samples = {{.row = 0, .slot = 5, .logprobs = 0}};
  StepResult result;
  ASSERT_TRUE(executor->enqueue(plan).ok());
  ASSERT_TRUE(executor->collect(result).ok());
  EXPECT_EQ(result.tokens[0], s.generated[1]);
  EXPECT_EQ(result.logprobs[0], s.logprobs[1]);
}

TEST(CudaPrompt, LogProbabilitiesAreThoseOfTheCpu) {
  const ModelConfig config = sampling_model();
  auto cuda = make_cuda(config, kLimits);
  ASSERT_NE(cuda, nullptr);
  auto cpu = make_cpu(config);
  Spread spread;
  const auto prompt = prompt_of(75, 1, 3000);
  StepDriver a(*cuda);
  StepDriver b(*cpu);
  Sequence& got = a.add({.prompt = prompt, .prompt_logprobs = 4});
  Sequence& want = b.add({.prompt = prompt, .prompt_logprobs = 4});
  a.generate(got, 2, 33);
  b.generate(want, 2);
  ASSERT_EQ(got.prompt_logprobs.size(), want.prompt_logprobs.size());
  ASSERT_EQ(got.prompt_top.size(), 74U * 4);
  for (size_t i = 0; i < got.prompt_logprobs.size(); ++i)
    spread.add(static_cast<double>(got.prompt_logprobs[i]) - static_cast<double>(want.prompt_logprobs[i]));
  expect_close(spread, kDummyDense, "prompt log-probabilities");
}

}  // namespace
}  // namespace dyn::native

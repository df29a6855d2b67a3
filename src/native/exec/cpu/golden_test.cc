// The CPU executor against transformers in fp32: greedy tokens of every golden prompt, log-probabilities close.
//
// golden_models.h says where the models are. Their absence is a failure: a suite that skips what it is for is no suite.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/test_sanitized.h"
#include "native/exec/cpu/cpu_executor.h"
#include "native/exec/cpu/fast/kernels.h"
#include "native/exec/step_driver.h"
#include "native/model/model_dir.h"
#include "native/testing/golden_models.h"

namespace dyn::native {
namespace {

constexpr size_t kTop = 5;

nlohmann::json golden(const std::string& name) {
  std::ifstream file(golden_file(name));
  return nlohmann::json::parse(file);
}

struct Case {
  std::string name;
  std::vector<TokenId> prompt;
  std::vector<TokenId> tokens;
  std::vector<std::vector<double>> top;  // a step: id, logprob, ... best first
  std::vector<double> logits;            // of the first step, when recorded
  double bf16_max = 0;                   // transformers' own errors in BF16, fed the same tokens
  double bf16_mean = 0;
  bool long_rope = false;  // the prompt is longer than what the model's short factors are for
};

std::vector<Case> random_cases(const std::string& model) {
  const auto file = golden("random/" + model + ".json");
  std::vector<Case> cases;
  for (const auto& prompt : file["prompts"]) {
    const auto& fp32 = prompt["float32"];
    const auto& error = prompt["bfloat16"]["forced_error"];
    cases.push_back({model, prompt["ids"], fp32["tokens"], fp32["top"], prompt["logits"], error["max"], error["mean"]});
    cases.back().long_rope = model == "phi3_longrope" && cases.back().prompt.size() > 64;
  }
  EXPECT_EQ(cases.size(), 6U);  // a loop over nothing proves nothing
  return cases;
}

std::vector<Case> smollm2_cases() {
  const auto prompts = golden("smollm2/prompts.json");
  const auto results = golden("smollm2/float32.json");
  const auto bf16 = golden("smollm2/bfloat16.json");
  std::vector<Case> cases;
  for (size_t i = 0; i < prompts["prompts"].size(); ++i) {
    const auto& prompt = prompts["prompts"][i];
    const auto& result = results["results"][i];
    EXPECT_EQ(prompt["name"], result["name"]);
    if (kSanitized && prompt["ids"].size() > 70) continue;  // minutes, and nothing new to find
    const auto& error = bf16["results"][i]["forced_error"];
    cases.push_back({prompt["name"], prompt["ids"], result["tokens"], result["top"], {}, error["max"], error["mean"]});
    if (kSanitized) cases.back().tokens.resize(8);
  }
  EXPECT_EQ(cases.size(), kSanitized ? 9U : 12U);
  return cases;
}

std::unique_ptr<Executor> open_model(const std::string& name, const ExecutorLimits& limits, const CpuOptions& options,
                                     MatrixLayout layout = MatrixLayout::kRowMajor) {
  const std::string place = models_directory() + "/" + name;
  auto fail = [&](const Error& error) {
    ADD_FAILURE() << error.message << "\nThe model " << place << " cannot be used; scripts/models makes it.";
    return nullptr;
  };
  auto directory = resolve_model(place);
  if (!directory) return fail(directory.error());
  auto config = load_model_config(*directory);
  if (!config) return fail(config.error());
  auto weights = load_weights(*config, *directory, {.format = LoadFormat::kSafetensors, .layout = layout});
  if (!weights) return fail(weights.error());
  auto executor = make_cpu_executor(*config, std::move(*weights), limits, options);
  if (!executor) return fail(executor.error());
  return std::move(*executor);
}

constexpr ExecutorLimits kRandomLimits{
    .max_batch_size = 16, .max_num_tokens = 512, .tokens_per_block = 32, .num_pages = 100};
constexpr ExecutorLimits kSmolLimits{
    .max_batch_size = 16, .max_num_tokens = 2048, .tokens_per_block = 32, .num_pages = 160};

void expect_golden(const Case& c, const StepDriver::Sequence& s, double tolerance) {
  SCOPED_TRACE(c.name + ", prompt of " + std::to_string(c.prompt.size()));
  EXPECT_FALSE(s.not_finite);
  ASSERT_EQ(s.generated.size(), c.tokens.size());
  for (size_t step = 0; step < c.tokens.size(); ++step) {
    const std::vector<double>& top = c.top[step];
    // Where the two best are closer than the arithmetic is exact, only luck decides. The closest of all golden steps
    // are 3.3e-4 apart (SmolLM2, chat_unicode_code), ten times what fp32 sums in another order differ by; so equality
    // holds.
    ASSERT_EQ(s.generated[step], c.tokens[step]) << "step " << step << ", margin " << top[1] - top[3];
    ASSERT_GE(s.top[step].size(), kTop);
    for (size_t i = 0; i < kTop; ++i) {
      EXPECT_NEAR(s.top[step][i].logprob, top[2 * i + 1], tolerance) << "step " << step << ", rank " << i + 1;
      EXPECT_EQ(s.top[step][i].rank, i + 1);
    }
    EXPECT_NEAR(s.logprobs[step], top[1], tolerance);
  }
}

// Every logit of the first step, up to the constant that log-softmax takes away.
void expect_logits(const Case& c, const StepDriver::Sequence& s, double tolerance) {
  const double max = *std::ranges::max_element(c.logits);
  double sum = 0;
  for (double logit : c.logits) sum += std::exp(logit - max);
  const double norm = max + std::log(sum);
  for (const engine::TopLogprob& t : s.top[0])
    EXPECT_NEAR(t.logprob, c.logits[t.id] - norm, tolerance) << "token " << t.id;
}

// The same bits, not only the same tokens.
void expect_equal(const StepDriver::Sequence& a, const StepDriver::Sequence& b) {
  ASSERT_EQ(a.generated, b.generated);
  ASSERT_EQ(a.logprobs, b.logprobs);
  for (size_t step = 0; step < a.top.size(); ++step) {
    for (size_t i = 0; i < a.top[step].size(); ++i) {
      ASSERT_EQ(a.top[step][i].id, b.top[step][i].id);
      ASSERT_EQ(a.top[step][i].logprob, b.top[step][i].logprob);
    }
  }
}

// Runs all cases together: prompts in chunks of at most `chunk` under a token budget, decode rows mixed in.
std::vector<StepDriver::Sequence*> run_mixed(StepDriver& driver, const std::vector<Case>& cases, size_t chunk,
                                             size_t budget, int32_t logprobs) {
  std::vector<StepDriver::Sequence*> sequences;
  for (const Case& c : cases)
    sequences.push_back(&driver.add({.prompt = c.prompt, .logprobs = logprobs, .long_rope = c.long_rope}));
  for (size_t round = 0;; ++round) {
    std::vector<std::pair<StepDriver::Sequence*, size_t>> rows;
    size_t left = budget;
    for (size_t i = 0; i < cases.size(); ++i) {
      // Later sequences join later, so that every kind of mixture occurs.
      if (sequences[i]->generated.size() >= cases[i].tokens.size() || round < i) continue;
      const size_t count = std::min({sequences[i]->left(), chunk, left});
      if (count == 0) continue;
      left -= count;
      rows.emplace_back(sequences[i], count);
    }
    if (rows.empty() && round >= cases.size()) return sequences;
    if (!rows.empty()) driver.step(rows);
  }
}

class RandomModel : public testing::TestWithParam<const char*> {};

TEST_P(RandomModel, GivesTheTokensAndLogitsOfTransformersOnEveryInstructionSet) {
  size_t compared = 0;
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (!make_cpu_executor({.vocab_size = 16,
                            .hidden_size = 16,
                            .intermediate_size = 16,
                            .num_layers = 0,
                            .num_heads = 1,
                            .num_kv_heads = 1,
                            .head_dim = 16},
                           {}, kRandomLimits, {.threads = 1, .isa = isa})) {
      continue;  // not on this machine
    }
    auto executor = open_model(std::string("random/") + GetParam(), kRandomLimits, {.threads = 2, .isa = isa});
    ASSERT_NE(executor, nullptr);
    StepDriver driver(*executor);
    for (const Case& c : random_cases(GetParam())) {
      StepDriver::Sequence& s = driver.add({.prompt = c.prompt, .logprobs = 384, .long_rope = c.long_rope});
      driver.generate(s, c.tokens.size());
      expect_golden(c, s, 1e-3);
      expect_logits(c, s, 1e-3);
      compared += s.generated.size();
    }
  }
  EXPECT_GE(compared, 6U * 16U);
}

// A path of the executor that this machine has.
struct Path {
  MatrixLayout layout;
  CpuIsa isa;
};

std::vector<Path> fast_paths() {
  std::vector<Path> paths;
  for (const CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (fast_kernels_for(isa) == nullptr) continue;
    paths.push_back({MatrixLayout::kPackedBf16, isa});
    paths.push_back({MatrixLayout::kPackedInt8, isa});
  }
  return paths;
}

std::string name_of(const Path& path) {
  return std::string(to_string(path.layout)) + ", isa " + std::to_string(static_cast<int>(path.isa));
}

void expect_batch_invariant(const std::string& name, const std::vector<Case>& cases, const Path& path) {
  SCOPED_TRACE(name_of(path));
  auto alone = open_model(name, kRandomLimits, {.threads = 1, .isa = path.isa}, path.layout);
  ASSERT_NE(alone, nullptr);
  StepDriver alone_driver(*alone);
  std::vector<StepDriver::Sequence*> expected;
  for (const Case& c : cases) {
    expected.push_back(&alone_driver.add({.prompt = c.prompt, .logprobs = 384, .long_rope = c.long_rope}));
    alone_driver.generate(*expected.back(), c.tokens.size());
  }
  for (const size_t chunk : {size_t{1}, size_t{7}, size_t{64}, size_t{512}}) {
    SCOPED_TRACE("chunks of " + std::to_string(chunk));
    auto mixed = open_model(name, kRandomLimits, {.threads = 3, .isa = path.isa}, path.layout);
    ASSERT_NE(mixed, nullptr);
    StepDriver driver(*mixed);
    const auto sequences = run_mixed(driver, cases, chunk, chunk + 20, 384);
    for (size_t i = 0; i < cases.size(); ++i) expect_equal(*expected[i], *sequences[i]);
  }
}

TEST_P(RandomModel, IsBatchInvariant) {
  expect_batch_invariant(std::string("random/") + GetParam(), random_cases(GetParam()),
                         {MatrixLayout::kRowMajor, CpuIsa::kBest});
}

TEST_P(RandomModel, FastPathsAreBatchInvariant) {
  for (const Path& path : fast_paths()) {
    expect_batch_invariant(std::string("random/") + GetParam(), random_cases(GetParam()), path);
  }
}

struct Errors {
  double max = 0;
  double sum = 0;
  size_t count = 0;
  [[nodiscard]] double mean() const { return sum / static_cast<double>(count); }
};

// Differences from fp32's log-probabilities of its best tokens, when fed fp32's tokens.
Errors forced_errors(StepDriver& driver, const Case& c, int32_t top) {
  std::vector<TokenId> text = c.prompt;
  text.insert(text.end(), c.tokens.begin(), c.tokens.end());
  StepDriver::Sequence& s = driver.add({.prompt = text, .long_rope = c.long_rope, .prompt_logprobs = top});
  driver.generate(s, 1);
  Errors errors;
  for (size_t step = 0; step < c.tokens.size(); ++step) {
    const size_t row = c.prompt.size() - 1 + step;
    for (size_t i = 0; i < kTop; ++i) {
      const auto id = static_cast<TokenId>(c.top[step][2 * i]);
      const auto begin = s.prompt_top.begin() + static_cast<ptrdiff_t>(row * static_cast<size_t>(top));
      const auto found = std::find_if(begin, begin + top, [&](const auto& t) { return t.id == id; });
      if (found == begin + top) {
        ADD_FAILURE() << "token " << id << " is not among the " << top << " best of step " << step;
        continue;
      }
      const double error = std::fabs(static_cast<double>(found->logprob) - c.top[step][2 * i + 1]);
      errors.max = std::max(errors.max, error);
      errors.sum += error;
      ++errors.count;
    }
  }
  driver.release(s);
  return errors;
}

// What the errors of all cases together may be, against those of transformers in BF16.
void expect_close_to_fp32(const std::string& name, const ExecutorLimits& limits, const std::vector<Case>& cases,
                          int32_t top, const Path& path) {
  SCOPED_TRACE(name_of(path));
  auto executor = open_model(name, limits, {.threads = 2, .isa = path.isa}, path.layout);
  ASSERT_NE(executor, nullptr);
  StepDriver driver(*executor);
  double mean = 0;
  double bf16_mean = 0;
  double max = 0;
  double bf16_max = 0;
  for (const Case& c : cases) {
    const Errors errors = forced_errors(driver, c, top);
    mean += errors.mean() / static_cast<double>(cases.size());
    bf16_mean += c.bf16_mean / static_cast<double>(cases.size());
    max = std::max(max, errors.max);
    bf16_max = std::max(bf16_max, c.bf16_max);
  }
  // INT8 adds the error of its weights: up to 2.7 times these on models of random weights.
  const double allowed = path.layout == MatrixLayout::kPackedInt8 ? 3.0 : 1.0;
  // With experts the largest difference is luck: a token near a tie goes to another expert.
  const bool experts = name.find("moe") != std::string::npos;
  EXPECT_LE(mean, (experts ? 1.5 : 1.0) * allowed * bf16_mean);
  if (!experts) {
    EXPECT_LE(max, allowed * bf16_max);
  }
}

TEST_P(RandomModel, FastPathsAreAsCloseToFp32AsTransformersInBf16) {
  for (const Path& path : fast_paths()) {
    expect_close_to_fp32(std::string("random/") + GetParam(), kRandomLimits, random_cases(GetParam()), 384, path);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, RandomModel,
                         testing::Values("gemma3", "gemma3_linear", "llama3", "mistral", "phi3", "phi3_longrope",
                                         "qwen2", "qwen3", "qwen3_moe", "qwen3_moe_mixed"),
                         [](const auto& info) { return std::string(info.param); });

TEST(SmolLm2, GivesTheTokensOfTransformersAlone) {
  auto executor = open_model("SmolLM2-135M-Instruct", kSmolLimits, {});
  ASSERT_NE(executor, nullptr);
  StepDriver driver(*executor);
  for (const Case& c : smollm2_cases()) {
    StepDriver::Sequence& s = driver.add({.prompt = c.prompt, .logprobs = kTop});
    driver.generate(s, c.tokens.size());
    expect_golden(c, s, 2e-3);
    driver.release(s);
  }
}

TEST(SmolLm2, GivesTheTokensOfTransformersInMixedBatchesOfChunks) {
  auto executor = open_model("SmolLM2-135M-Instruct", kSmolLimits, {});
  ASSERT_NE(executor, nullptr);
  StepDriver driver(*executor);
  const std::vector<Case> cases = smollm2_cases();
  const auto sequences = run_mixed(driver, cases, 100, 128, kTop);
  for (size_t i = 0; i < cases.size(); ++i) expect_golden(cases[i], *sequences[i], 2e-3);
}

TEST(SmolLm2, FastPathsAreAsCloseToFp32AsTransformersInBf16) {
  for (const Path& path : fast_paths()) {
    if (path.isa == CpuIsa::kPortable) continue;  // minutes, and no other code than AVX2's
    expect_close_to_fp32("SmolLM2-135M-Instruct", kSmolLimits, smollm2_cases(), 400, path);
  }
}

}  // namespace
}  // namespace dyn::native

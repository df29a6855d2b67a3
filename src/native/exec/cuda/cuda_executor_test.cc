// The host side of the CUDA executor over a module that only pretends: it keeps what is uploaded, reads the staged
// steps as the device would, and answers with tokens that tell what it was given.
#include "native/exec/cuda/cuda_executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <map>

#include "native/exec/cuda/step_packer.h"
#include "native/exec/step_driver.h"

namespace dyn::native {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint32_t kVocab = 101;

// The next token after `token` at a position of the answer.
TokenId follow(TokenId token, uint64_t position) {
  return static_cast<TokenId>((token * 7 + position * 3 + 1) % kVocab);
}

// What stands behind the function table. One at a time.
struct FakeModule {
  cuda::Status probe_status = cuda::Status::kOk;
  std::vector<std::byte> arena;
  std::vector<std::vector<std::byte>> uploads;
  std::vector<std::byte> staging[2];
  cuda::StepLimits limits{};
  uint32_t num_pages = 0;
  uint64_t page_bytes = 0;
  std::vector<uint32_t> graphs;
  std::vector<cuda::StagedStep> steps;
  std::vector<TokenId> last_tokens;  // of the step before
  struct Outcome {
    std::vector<uint32_t> tokens;
    std::vector<float> logprobs;
    std::vector<uint8_t> not_finite;
  };
  Outcome outcomes[2];
  int pending = 0;
  int logits_read = 0;
};
FakeModule* fake = nullptr;

cuda::Status refuse(cuda::ErrorText* error, const char* text, cuda::Status status) {
  std::strncpy(error->text, text, sizeof error->text - 1);
  return status;
}

template <class T>
const T* staged(const cuda::StagedStep& step, uint32_t offset) {
  return reinterpret_cast<const T*>(fake->staging[step.flight].data() + offset);
}

cuda::Status fake_enqueue(cuda::Device*, const cuda::StagedStep* step, cuda::ErrorText* error) {
  if (++fake->pending > 2) return refuse(error, "too many steps", cuda::Status::kFailed);
  fake->steps.push_back(*step);
  FakeModule::Outcome& outcome = fake->outcomes[step->flight];
  outcome = {};
  for (uint32_t s = 0; s < step->num_samples; ++s) {
    const int32_t t = staged<int32_t>(*step, step->sample_tokens)[s];
    TokenId token = staged<uint32_t>(*step, step->token_ids)[t];
    if (token == kTokenOfPreviousStep) token = fake->last_tokens.at(staged<uint32_t>(*step, step->from_sample)[t]);
    const auto& params = staged<cuda::SampleRowParams>(*step, step->sample_params)[s];
    outcome.tokens.push_back(follow(token, params.position));
    outcome.logprobs.push_back(-1.0F);
    outcome.not_finite.push_back(0);
  }
  fake->last_tokens = outcome.tokens;
  return cuda::Status::kOk;
}

cuda::Status fake_collect(cuda::Device*, uint32_t flight, cuda::StepOutcome* outcome, cuda::ErrorText* error) {
  if (fake->pending-- == 0) return refuse(error, "nothing was enqueued", cuda::Status::kFailed);
  FakeModule::Outcome& from = fake->outcomes[flight];
  *outcome = {.struct_size = sizeof *outcome,
              .tokens = from.tokens.data(),
              .logprobs = from.logprobs.data(),
              .not_finite = from.not_finite.data()};
  return cuda::Status::kOk;
}

// Logits of a row: highest at the token that follows with position 0, then falling with the distance from it.
cuda::Status fake_logits(cuda::Device*, uint32_t of_tokens, const uint32_t* indices, uint32_t count, float* to,
                         cuda::ErrorText*) {
  ++fake->logits_read;
  const cuda::StagedStep& step = fake->steps.back();
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t t =
        of_tokens != 0 ? indices[i] : static_cast<uint32_t>(staged<int32_t>(step, step.sample_tokens)[indices[i]]);
    const TokenId best = follow(staged<uint32_t>(step, step.token_ids)[t], 0);
    for (uint32_t v = 0; v < kVocab; ++v) to[i * kVocab + v] = -static_cast<float>((v + kVocab - best) % kVocab);
  }
  return cuda::Status::kOk;
}

const cuda::ExecutorApi kFakeApi{
    .struct_size = sizeof(cuda::ExecutorApi),
    .build_id = "fake",
    .probe =
        [](int32_t, cuda::DeviceFacts* facts, cuda::ErrorText* error) {
          std::strncpy(facts->name, "pretended", sizeof facts->name - 1);
          return fake->probe_status == cuda::Status::kOk ? cuda::Status::kOk
                                                         : refuse(error, "no NVIDIA driver", fake->probe_status);
        },
    .open =
        [](const cuda::HostCalls*, int32_t, cuda::Device** handle, cuda::ErrorText*) {
          *handle = reinterpret_cast<cuda::Device*>(fake);
          return cuda::Status::kOk;
        },
    .close = [](cuda::Device*) {},
    .memory =
        [](cuda::Device*, uint64_t* free_bytes, uint64_t* total_bytes, cuda::ErrorText*) {
          *free_bytes = 1'000'000;
          *total_bytes = 2'000'000;
          return cuda::Status::kOk;
        },
    .upload_slots = [](cuda::Device*) { return uint32_t{5}; },
    .reserve_weights =
        [](cuda::Device*, uint64_t bytes, cuda::ErrorText*) {
          fake->arena.assign(bytes, std::byte{0xEE});
          fake->uploads.assign(5, std::vector<std::byte>(4096));
          return cuda::Status::kOk;
        },
    .upload_buffer =
        [](cuda::Device*, uint32_t slot, void** buffer, uint64_t* capacity, cuda::ErrorText*) {
          *buffer = fake->uploads.at(slot).data();
          *capacity = 4096;
          return cuda::Status::kOk;
        },
    .upload =
        [](cuda::Device*, uint32_t slot, uint64_t offset, uint64_t bytes, cuda::ErrorText* error) {
          if (offset + bytes > fake->arena.size()) return refuse(error, "beyond the arena", cuda::Status::kFailed);
          std::memcpy(fake->arena.data() + offset, fake->uploads.at(slot).data(), bytes);
          return cuda::Status::kOk;
        },
    .finish_uploads = [](cuda::Device*, cuda::ErrorText*) { return cuda::Status::kOk; },
    .prepare =
        [](cuda::Device*, const cuda::ModelSpec*, const cuda::StepLimits* limits, cuda::ErrorText*) {
          fake->limits = *limits;
          for (auto& staging : fake->staging) staging.resize(limits->staging_bytes);
          return cuda::Status::kOk;
        },
    .reserve_kv =
        [](cuda::Device*, uint32_t num_pages, uint64_t page_bytes, cuda::ErrorText*) {
          fake->num_pages = num_pages;
          fake->page_bytes = page_bytes;
          return cuda::Status::kOk;
        },
    .capture =
        [](cuda::Device*, const cuda::StagedStep* step, cuda::ErrorText*) {
          fake->graphs.push_back(step->bucket);
          return cuda::Status::kOk;
        },
    .staging =
        [](cuda::Device*, uint32_t flight, void** buffer, cuda::ErrorText*) {
          *buffer = fake->staging[flight].data();
          return cuda::Status::kOk;
        },
    .enqueue = fake_enqueue,
    .collect = fake_collect,
    .read_logits = fake_logits,
    .measure_read = [](cuda::Device*, uint64_t, double*, cuda::ErrorText*) { return cuda::Status::kFailed; },
};

ModelConfig small() {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = kVocab;
  c.hidden_size = 64;
  c.intermediate_size = 96;
  c.num_layers = 3;
  c.num_heads = 6;
  c.num_kv_heads = 2;
  c.head_dim = 64;
  c.max_positions = 512;
  c.qkv_bias = true;
  c.layers = {{}, {.experts = true}, {.window = 40}};
  c.experts = {.count = 5, .chosen = 3, .intermediate_size = 32, .normalize = true};
  return c;
}

constexpr ExecutorLimits kLimits{.max_batch_size = 6, .max_num_tokens = 64, .tokens_per_block = 16, .num_pages = 60};

class CudaHost : public testing::Test {
 protected:
  CudaHost() { fake = &module_; }
  ~CudaHost() override { fake = nullptr; }

  CudaDevice device() {
    auto opened = CudaDevice::open({.api = &kFakeApi});
    EXPECT_TRUE(opened.ok());
    return std::move(*opened);
  }
  std::unique_ptr<Executor> make(const CudaExecutorOptions& options = {.max_seq_len = 256}) {
    auto executor = make_cuda_executor(device(), small(), lay_out_cuda_weights(small()), kLimits, options);
    EXPECT_TRUE(executor.ok()) << executor.error().message;
    return std::move(*executor);
  }

  FakeModule module_;
};

TEST_F(CudaHost, WeightsAreThoseOfTheCpu) {
  const ModelConfig config = small();
  const CudaDevice gpu = device();
  uint64_t told = 0;
  auto uploaded = upload_weights(gpu, config, "", LoadFormat::kDummy,
                                 [&](uint64_t done, uint64_t total) { told = done == total ? total : told; });
  ASSERT_TRUE(uploaded.ok()) << uploaded.error().message;
  auto weights = load_weights(config, "", {.format = LoadFormat::kDummy});
  ASSERT_TRUE(weights.ok());
  EXPECT_GT(told, 0U);
  EXPECT_EQ(uploaded->bytes, fake->arena.size());
  const auto same = [&](const Matrix& matrix, uint64_t offset) {
    EXPECT_EQ(offset % 16, 0U);
    EXPECT_EQ(std::memcmp(fake->arena.data() + offset, matrix.data, matrix.bytes()), 0);
  };
  same(weights->embedding, uploaded->embedding);
  same(weights->lm_head, uploaded->lm_head);
  for (size_t i = 0; i < 3; ++i) {
    const LayerWeights& layer = weights->layers[i];
    const cuda::LayerSpec& spec = uploaded->layers[i];
    same(layer.qkv, spec.qkv);
    same(layer.o, spec.o);
    EXPECT_EQ(std::memcmp(fake->arena.data() + spec.attention_norm, layer.attention_norm, 64 * sizeof(float)), 0);
    EXPECT_EQ(std::memcmp(fake->arena.data() + spec.qkv_bias, layer.qkv_bias, 640 * sizeof(float)), 0);
    EXPECT_EQ(spec.q_norm, cuda::kNoTensor);
    EXPECT_EQ(spec.window, i == 2 ? 40U : 0U);
    if (layer.experts.empty()) {
      EXPECT_EQ(spec.router, cuda::kNoTensor);
      same(layer.gate_up, spec.gate_up);
      same(layer.down, spec.down);
      continue;
    }
    same(layer.router, spec.router);
    for (size_t e = 0; e < 5; ++e) {  // one behind the other
      same(layer.experts[e].gate_up, spec.gate_up + e * layer.experts[e].gate_up.bytes());
      same(layer.experts[e].down, spec.down + e * layer.experts[e].down.bytes());
    }
  }
}

TEST_F(CudaHost, PreparesInOrder) {
  uint64_t free = 0;
  auto executor = make({.max_seq_len = 256, .choose_pages = [&](uint64_t free_bytes) -> Result<uint32_t> {
                          free = free_bytes;
                          return 33U;
                        }});
  EXPECT_EQ(free, 1'000'000U);
  EXPECT_EQ(executor->limits().num_pages, 33U);
  EXPECT_EQ(fake->num_pages, 33U);
  EXPECT_EQ(fake->page_bytes, uint64_t{3} * 2 * 2 * 64 * 16 * 2)
      << "layers, keys and values, heads, dim, tokens, bytes";
  EXPECT_EQ(fake->page_bytes, cuda_kv_bytes_per_page(small(), 16));
  EXPECT_THAT(fake->graphs, ElementsAre(6, 4, 2, 1));
  EXPECT_EQ(executor->pipeline_depth(), 2U);
}

TEST_F(CudaHost, RunsSequences) {
  auto executor = make();
  StepDriver driver(*executor);
  auto& a = driver.add({.prompt = {5, 6, 7, 8}, .logprobs = 0});
  auto& b = driver.add({.prompt = {9}});
  driver.step({{&a, 2}});
  driver.step({{&a, 2}, {&b, 1}});
  driver.step({{&b, 1}, {&a, 1}});
  EXPECT_THAT(a.generated, ElementsAre(follow(8, 0), follow(follow(8, 0), 1)));
  EXPECT_THAT(b.generated, ElementsAre(follow(9, 0), follow(follow(9, 0), 1)));
  EXPECT_EQ(a.logprobs[0], -1.0F);
  EXPECT_EQ(fake->steps.at(0).bucket, 0U);
  EXPECT_EQ(fake->steps.at(1).bucket, 0U);
  EXPECT_EQ(fake->steps.at(2).bucket, 2U);
  EXPECT_EQ(fake->logits_read, 0);
}

// Three decode steps of two rows, each enqueued before the one before it is collected.
std::vector<TokenId> run_pipelined(Executor& executor, const engine::SamplingParams& params) {
  StepPlan plans[2];
  StepResult result;
  std::vector<TokenId> got;
  for (uint32_t step = 0; step < 4; ++step) {
    StepPlan& plan = plans[step % 2];
    plan.clear();
    if (step == 0) plan.slot_starts = {{.slot = 3, .sampling = params}, {.slot = 4, .sampling = {.temperature = 0}}};
    plan.tokens = step == 0 ? std::vector<TokenId>{10, 20} : std::vector<TokenId>(2, kTokenOfPreviousStep);
    if (step > 0) plan.from_sample = {0, 1};
    const auto position = static_cast<int32_t>(step);
    plan.positions = {position, position};
    plan.row_offsets = {0, 1, 2};
    plan.context_lens = {position + 1, position + 1};
    plan.pages = {1, 2};
    plan.page_offsets = {0, 1, 2};
    plan.samples = {{.row = 0, .slot = 3}, {.row = 1, .slot = 4}};
    EXPECT_TRUE(executor.enqueue(plan).ok());
    if (step == 0) continue;
    EXPECT_TRUE(executor.collect(result).ok());
    got.insert(got.end(), result.tokens.begin(), result.tokens.end());
  }
  EXPECT_TRUE(executor.collect(result).ok());
  EXPECT_FALSE(executor.collect(result).ok()) << "nothing is left";
  got.insert(got.end(), result.tokens.begin(), result.tokens.end());
  return got;
}

TEST_F(CudaHost, TwoStepsInFlight) {
  auto executor = make();
  const auto got = run_pipelined(*executor, {.temperature = 0});
  std::vector<TokenId> expected;
  TokenId a = 10;
  TokenId b = 20;
  for (int i = 0; i < 4; ++i) {
    expected.push_back(a = follow(a, 0));
    expected.push_back(b = follow(b, 0));
  }
  EXPECT_EQ(got, expected);
  EXPECT_EQ(fake->logits_read, 0);
}

// The host samples what the device cannot, and the step after it gets the host's token, not the device's.
TEST_F(CudaHost, BadWordsAreSampledByTheHost) {
  auto executor = make();
  const TokenId first = follow(10, 0);
  const TokenId second = follow(first, 0);
  // The second token may not follow the first: its neighbour is taken.
  const auto got = run_pipelined(*executor, {.temperature = 0, .bad_words = {{first, second}}});
  const TokenId instead = (second + 1) % kVocab;
  ASSERT_EQ(got.size(), 8U);
  EXPECT_EQ(got[0], first);
  EXPECT_EQ(got[2], instead);
  EXPECT_EQ(got[4], follow(instead, 0));
  EXPECT_EQ(got[1], follow(20, 0)) << "the other row stays on the device";
  EXPECT_EQ(fake->logits_read, 4);
}

// A sequence ends, another enters its slot while the last step of the first is in flight: the second's answer does not
// begin with the first's token.
TEST_F(CudaHost, AStepInFlightDoesNotReachTheNextSequenceOfItsSlot) {
  auto executor = make();
  const TokenId of_first = follow(10, 0);
  const TokenId of_second = follow(40, 0);
  const auto plan_of = [](TokenId token, PageId page) {
    StepPlan plan;
    plan.tokens = {token};
    plan.positions = {0};
    plan.row_offsets = {0, 1};
    plan.context_lens = {1};
    plan.pages = {page};
    plan.page_offsets = {0, 1};
    plan.samples = {{.row = 0, .slot = 3}};
    return plan;
  };
  StepPlan first = plan_of(10, 1);
  first.slot_starts = {{.slot = 3, .sampling = {.temperature = 0}}};
  StepPlan second = plan_of(40, 2);
  second.slot_starts = {{.slot = 3, .sampling = {.temperature = 0, .bad_words = {{of_first, of_second}}}}};
  ASSERT_TRUE(executor->enqueue(first).ok());
  ASSERT_TRUE(executor->enqueue(second).ok());
  StepResult result;
  ASSERT_TRUE(executor->collect(result).ok());
  EXPECT_EQ(result.tokens[0], of_first);
  ASSERT_TRUE(executor->collect(result).ok());
  EXPECT_EQ(result.tokens[0], of_second);
}

TEST_F(CudaHost, ManyAlternativesComeFromTheHost) {
  auto executor = make();
  StepDriver driver(*executor);
  auto& s = driver.add({.prompt = {5}, .logprobs = 30});
  driver.step({{&s, 1}});
  ASSERT_EQ(s.top[0].size(), 30U);
  const TokenId best = follow(5, 0);
  EXPECT_EQ(s.generated[0], best);
  EXPECT_EQ(s.top[0][1].id, (best + 1) % kVocab);
  EXPECT_EQ(s.top[0][1].rank, 2U);
}

TEST_F(CudaHost, PromptLogProbabilities) {
  auto executor = make();
  StepDriver driver(*executor);
  auto& other = driver.add({.prompt = {1}});
  const TokenId second = follow(40, 0);
  auto& s = driver.add({.prompt = {40, second, 3}, .prompt_logprobs = 2});
  driver.step({{&s, 3}, {&other, 1}});  // packed the other way round
  ASSERT_EQ(s.prompt_logprobs.size(), 2U);
  EXPECT_NEAR(s.prompt_logprobs[0], -0.4587, 1e-3) << "the likeliest of e^0, e^-1, ...";
  EXPECT_EQ(s.prompt_top[0].id, second);
  EXPECT_EQ(s.prompt_top[1].id, (second + 1) % kVocab);
}

TEST_F(CudaHost, RefusesInOneLine) {
  fake->probe_status = cuda::Status::kNoDevice;
  auto opened = CudaDevice::open({.api = &kFakeApi});
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().message, "GPU: no NVIDIA driver");
  EXPECT_EQ(opened.error().code, Code::kUnavailable);

  ModelConfig config = small();
  config.head_dim = 40;
  EXPECT_THAT(check_cuda_model(config, kLimits).error().message, HasSubstr("head_dim = 40: the CUDA executor needs"));
  ExecutorLimits limits = kLimits;
  limits.tokens_per_block = 24;
  EXPECT_THAT(check_cuda_model(small(), limits).error().message, HasSubstr("a power of two from 16 up"));
  EXPECT_TRUE(check_cuda_model(small(), kLimits).ok());
  const auto missing = load_cuda_module("/nowhere/libdynamo_exec_cuda.so");
  ASSERT_FALSE(missing.ok());
  EXPECT_THAT(missing.error().message, HasSubstr("/nowhere/libdynamo_exec_cuda.so"));
}

// The module as it was built, on a machine with or without a GPU.
TEST(CudaModule, IsOfThisBuildAndSaysWhatIsMissing) {
  auto api = load_cuda_module();
  if (!api && api.error().message.starts_with("this build has no CUDA module")) GTEST_SKIP() << api.error().message;
  ASSERT_TRUE(api.ok()) << api.error().message;
  const auto facts = probe_cuda();
  if (facts) {
    EXPECT_EQ(facts->compute_major, 9);
    EXPECT_GT(facts->total_bytes, 0U);
  } else {
    EXPECT_EQ(facts.error().code, Code::kUnavailable);
    EXPECT_THAT(facts.error().message, testing::AnyOf(HasSubstr("driver"), HasSubstr("GPU"), HasSubstr("compute")));
    EXPECT_THAT(facts.error().message, testing::Not(HasSubstr("\n")));
  }
}

}  // namespace
}  // namespace dyn::native

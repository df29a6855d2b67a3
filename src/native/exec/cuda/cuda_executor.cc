#include "native/exec/cuda/cuda_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <deque>
#include <utility>
#include <vector>

#include "native/exec/cuda/step_packer.h"
#include "native/exec/plan_check.h"
#include "native/exec/rope.h"
#include "native/sample/sampler.h"

namespace dyn::native {
namespace {

constexpr uint32_t kDepth = 2;
constexpr uint32_t kLogitsAtOnce = 16;  // rows that the host scores at a time

class CudaExecutor final : public Executor {
 public:
  CudaExecutor(CudaDevice device, const ModelConfig& config, const CudaWeights& weights, const ExecutorLimits& limits)
      : device_(std::move(device)),
        config_(config),
        weights_(weights),
        limits_(limits),
        packer_(limits, config.vocab_size, graph_buckets(limits.max_batch_size)),
        slots_(limits.max_batch_size),
        sampler_(config.vocab_size) {}

  Result<void> prepare(const CudaExecutorOptions& options) {
    if (auto done = give_model(options.max_seq_len); !done) return done;
    const uint64_t page_bytes = cuda_kv_bytes_per_page(config_, limits_.tokens_per_block);
    if (options.choose_pages) {
      const auto free = device_.free_bytes();
      if (!free) return free.error();
      auto pages = options.choose_pages(*free);
      if (!pages) return pages.error();
      limits_.num_pages = *pages;
    }
    if (auto done = call("KV pool", &cuda::ExecutorApi::reserve_kv, limits_.num_pages, page_bytes); !done) return done;
    for (uint32_t flight = 0; flight < kDepth; ++flight) {
      void* buffer = nullptr;
      if (auto done = call("staging", &cuda::ExecutorApi::staging, flight, &buffer); !done) return done;
      flights_[flight].staging = {static_cast<std::byte*>(buffer), staging_bytes_};
    }
    if (!options.graphs) return {};
    // The largest first: what libraries need once, they need for it.
    for (size_t i = packer_.buckets().size(); i-- > 0;) {
      const auto step = packer_.pack_padding(packer_.buckets()[i], 0, flights_[0].staging);
      if (!step) return step.error();
      if (auto done = call("CUDA graph", &cuda::ExecutorApi::capture, &*step); !done) return done;
    }
    return {};
  }

  [[nodiscard]] const ExecutorLimits& limits() const override { return limits_; }
  [[nodiscard]] uint32_t pipeline_depth() const override { return kDepth; }

  Result<void> enqueue(const StepPlan& plan) override {
    if (in_flight_ == kDepth) return internal_error("two steps are in flight already");
    if (auto checked = check_plan(plan, limits_, config_.vocab_size, known_.size(), config_.window()); !checked)
      return checked;
    for (const SlotStart& start : plan.slot_starts) {
      CudaSlot& slot = slots_[start.slot];
      slot.sampler.start(start.sampling, start.prompt, start.generated, config_.vocab_size);
      slot.on_host = false;
      ++slot.sequences;
    }
    const uint32_t index = next_;
    Flight& flight = flights_[index];
    auto step = packer_.pack(plan, slots_, known_, index, flight.staging);
    if (!step) return step.error();
    if (auto done = call("step", &cuda::ExecutorApi::enqueue, &*step); !done) return done;
    next_ = (next_ + 1) % kDepth;
    ++in_flight_;
    flight.plan = &plan;
    flight.on_host.assign(plan.samples.size(), 0);
    flight.sequences.clear();
    for (const SampleRow& sample : plan.samples) flight.sequences.push_back(slots_[sample.slot].sequences);
    known_.assign(plan.samples.size(), kTokenOfPreviousStep);
    return finish_on_host(flight);
  }

  Result<void> collect(StepResult& result) override {
    if (in_flight_ == 0) return internal_error("no step was enqueued");
    const uint32_t index = oldest();
    if (auto done = finish(index); !done) return done;
    --in_flight_;
    flights_[index].finished = false;
    std::swap(result, flights_[index].result);
    return {};
  }

  [[nodiscard]] uint64_t active_bytes(const StepPlan& plan) const override {
    const auto matrix = [](uint64_t rows, uint64_t cols) { return rows * cols * sizeof(uint16_t); };
    const uint64_t hidden = config_.hidden_size;
    const uint64_t tokens = plan.num_tokens();
    uint64_t bytes = tokens * matrix(1, hidden);
    uint64_t kv_tokens = 0;  // of all layers
    for (uint32_t i = 0; i < config_.num_layers; ++i) {
      const LayerTraits traits = config_.layer(i);
      bytes += matrix(config_.qkv_size(), hidden) + matrix(hidden, config_.q_size());
      // All tokens may choose the same experts.
      bytes += traits.experts ? matrix(config_.experts.count, hidden) +
                                    config_.experts.chosen * matrix(3 * config_.experts.intermediate_size, hidden)
                              : matrix(uint64_t{3} * config_.intermediate_size, hidden);
      kv_tokens += tokens;                            // written
      for (size_t r = 0; r < plan.num_rows(); ++r) {  // read
        const auto context = static_cast<uint64_t>(plan.context_lens[r]);
        const uint64_t own = plan.row_offsets[r + 1] - plan.row_offsets[r];
        kv_tokens += traits.window == 0 ? context : std::min(context, traits.window - 1 + own);
      }
    }
    if (!plan.samples.empty() || !plan.prompt_logprobs.empty()) bytes += matrix(config_.vocab_size, hidden);
    return bytes + kv_tokens * 2 * config_.kv_size() * sizeof(uint16_t);
  }

 private:
  // A step in flight, and what the host itself has found of its result.
  struct Flight {
    const StepPlan* plan = nullptr;
    std::span<std::byte> staging;
    std::vector<uint32_t> sequences;  // [samples] CudaSlot::sequences when it was enqueued
    std::vector<uint8_t> on_host;     // [samples] 1: in `samples`
    std::vector<Sample> samples;      // [samples]
    std::vector<std::vector<engine::TopLogprob>> tops;
    bool finished = false;  // `result` is whole
    StepResult result;
  };

  [[nodiscard]] uint32_t oldest() const { return (next_ + kDepth - in_flight_) % kDepth; }

  template <class Function, class... Args>
  Result<void> call(const char* what, Function function, Args... args) {
    cuda::ErrorText error{};
    return CudaDevice::check((device_.api().*function)(device_.handle(), args..., &error), error, what);
  }

  Result<void> give_model(uint32_t max_seq_len) {
    std::vector<const Rope*> kinds{&config_.rope};
    if (config_.local_rope) kinds.push_back(&*config_.local_rope);
    std::deque<std::vector<float>> frequencies;
    std::vector<cuda::RopeSpec> ropes;
    for (const Rope* rope : kinds) {
      const float* usual = frequencies.emplace_back(rotary_frequencies(*rope, config_.head_dim)).data();
      const float* extended = rope->long_factors.empty()
                                  ? nullptr
                                  : frequencies.emplace_back(rotary_frequencies(*rope, config_.head_dim, true)).data();
      ropes.push_back({.frequencies = usual,
                       .long_frequencies = extended,
                       .factor = rope->attention_scale,
                       .half = rotary_dim(*rope, config_.head_dim) / 2});
    }
    cuda::ModelSpec spec{};
    spec.struct_size = sizeof spec;
    spec.vocab_size = config_.vocab_size;
    spec.hidden_size = config_.hidden_size;
    spec.intermediate_size = config_.intermediate_size;
    spec.num_layers = config_.num_layers;
    spec.num_heads = config_.num_heads;
    spec.num_kv_heads = config_.num_kv_heads;
    spec.head_dim = config_.head_dim;
    spec.num_experts = config_.experts.count;
    spec.chosen_experts = config_.experts.chosen;
    spec.moe_intermediate_size = config_.experts.intermediate_size;
    spec.normalize_experts = config_.experts.normalize ? 1 : 0;
    spec.gelu = config_.activation == Activation::kGeluTanh ? 1 : 0;
    spec.num_ropes = static_cast<uint32_t>(ropes.size());
    spec.norm_eps = config_.norm_eps;
    spec.embedding_scale = config_.embedding_scale;
    spec.score_scale = config_.score_scale();
    spec.embedding = weights_.embedding;
    spec.final_norm = weights_.final_norm;
    spec.lm_head = weights_.lm_head;
    spec.layers = weights_.layers.data();
    spec.ropes = ropes.data();
    staging_bytes_ = StepPacker::staging_bytes(limits_, max_seq_len);
    cuda::StepLimits limits{};
    limits.struct_size = sizeof limits;
    limits.max_batch_size = limits_.max_batch_size;
    limits.max_num_tokens = std::max(limits_.max_num_tokens, limits_.max_batch_size);
    limits.tokens_per_block = limits_.tokens_per_block;
    limits.max_seq_len = max_seq_len;
    limits.staging_bytes = staging_bytes_;
    return call("model", &cuda::ExecutorApi::prepare, &spec, &limits);
  }

  // Rows that the device does not sample, and log-probabilities of prompts: from logits, before the next step.
  Result<void> finish_on_host(Flight& flight) {
    const StepPlan& plan = *flight.plan;
    host_rows_.clear();
    for (uint32_t s = 0; s < plan.samples.size(); ++s) {
      if (!slots_[plan.samples[s].slot].on_host) continue;
      host_rows_.push_back(s);
      flight.on_host[s] = 1;
    }
    flight.result.prompt_logprobs.clear();
    flight.result.prompt_top.clear();
    if (host_rows_.empty() && plan.prompt_logprobs.empty()) return {};
    // A sampler's slot must have seen the tokens of the step before.
    if (in_flight_ == kDepth) {
      if (auto done = finish(oldest()); !done) return done;
    }
    flight.samples.resize(plan.samples.size());
    flight.tops.resize(plan.samples.size());
    auto done = for_logits(0, host_rows_, [&](size_t i, std::span<const float> logits) {
      const uint32_t s = host_rows_[i];
      const SampleRow& row = plan.samples[s];
      flight.tops[s].resize(std::min(static_cast<uint32_t>(std::max(row.logprobs, 0)), config_.vocab_size));
      flight.samples[s] = sampler_.sample(logits, slots_[row.slot].sampler, row, flight.tops[s]);
      known_[s] = flight.samples[s].token;
    });
    if (!done) return done;
    for (const PromptLogprobs& wanted : plan.prompt_logprobs) {
      host_rows_.clear();
      for (uint32_t i = 0; i < wanted.next.size(); ++i) host_rows_.push_back(packer_.first_token(wanted.row) + i);
      done = for_logits(1, host_rows_, [&](size_t i, std::span<const float> logits) {
        auto& top = flight.result.prompt_top;
        const size_t first = top.size();
        top.resize(first + wanted.top);
        flight.result.prompt_logprobs.push_back(sampler_.score(logits, wanted.next[i], std::span(top).subspan(first)));
      });
      if (!done) return done;
    }
    return {};
  }

  // use(i, logits) for each of `rows`: samples, or packed tokens.
  template <class Use>
  Result<void> for_logits(uint32_t of_tokens, std::span<const uint32_t> rows, const Use& use) {
    const size_t vocab = config_.vocab_size;
    for (size_t begin = 0; begin < rows.size(); begin += kLogitsAtOnce) {
      const auto count = static_cast<uint32_t>(std::min<size_t>(kLogitsAtOnce, rows.size() - begin));
      logits_.resize(kLogitsAtOnce * vocab);
      if (auto done =
              call("logits", &cuda::ExecutorApi::read_logits, of_tokens, rows.data() + begin, count, logits_.data());
          !done)
        return done;
      for (uint32_t i = 0; i < count; ++i) use(begin + i, std::span<const float>(logits_).subspan(i * vocab, vocab));
    }
    return {};
  }

  // Waits for the step and puts its result together; once.
  Result<void> finish(uint32_t index) {
    Flight& flight = flights_[index];
    if (flight.finished) return {};
    cuda::StepOutcome outcome{};
    outcome.struct_size = sizeof outcome;
    if (auto done = call("step", &cuda::ExecutorApi::collect, index, &outcome); !done) return done;
    take(flight, outcome);
    flight.finished = true;
    return {};
  }

  void take(Flight& flight, const cuda::StepOutcome& outcome) {
    const StepPlan& plan = *flight.plan;
    StepResult& result = flight.result;
    const size_t samples = plan.samples.size();
    result.tokens.resize(samples);
    result.logprobs.resize(samples);
    result.not_finite.resize(samples);
    result.top_offsets.assign(1, 0);
    result.top.clear();
    for (size_t s = 0; s < samples; ++s) {
      const SampleRow& row = plan.samples[s];
      const auto wanted = std::min(static_cast<uint32_t>(std::max(row.logprobs, 0)), config_.vocab_size);
      if (flight.on_host[s] != 0) {
        result.tokens[s] = flight.samples[s].token;
        result.logprobs[s] = flight.samples[s].logprob;
        result.not_finite[s] = flight.samples[s].not_finite ? 1 : 0;
        result.top.insert(result.top.end(), flight.tops[s].begin(), flight.tops[s].end());
      } else {
        result.tokens[s] = outcome.tokens[s];
        result.logprobs[s] = outcome.logprobs[s];
        result.not_finite[s] = outcome.not_finite[s];
        for (uint32_t k = 0; k < wanted; ++k) {
          const cuda::TopLogprobOut& from = outcome.top[s * cuda::kMaxTopLogprobs + k];
          result.top.push_back({.id = from.id, .logprob = from.logprob, .rank = k + 1});
        }
      }
      result.top_offsets.push_back(static_cast<uint32_t>(result.top.size()));
      CudaSlot& slot = slots_[row.slot];
      // Another sequence may have entered the slot since.
      if (result.not_finite[s] == 0 && slot.sequences == flight.sequences[s]) slot.sampler.add(result.tokens[s]);
    }
  }

  CudaDevice device_;
  const ModelConfig config_;
  const CudaWeights weights_;
  ExecutorLimits limits_;
  StepPacker packer_;
  std::vector<CudaSlot> slots_;
  Sampler sampler_;
  uint64_t staging_bytes_ = 0;

  std::array<Flight, kDepth> flights_;
  uint32_t next_ = 0;
  uint32_t in_flight_ = 0;
  std::vector<TokenId> known_;  // of the step enqueued last, by sample: what the host sampled, or the marker
  std::vector<uint32_t> host_rows_;
  std::vector<float> logits_;
};

}  // namespace

uint64_t cuda_kv_bytes_per_page(const ModelConfig& config, uint32_t tokens_per_block) {
  return uint64_t{2} * config.num_layers * config.kv_size() * tokens_per_block * sizeof(uint16_t);
}

Result<void> check_cuda_model(const ModelConfig& config, const ExecutorLimits& limits) {
  const auto refuse = [](const char* name, uint32_t value, const char* wanted) {
    return unsupported(fmt::format("{} = {}: the CUDA executor needs {}", name, value, wanted));
  };
  for (const uint32_t dim : {32U, 48U, 64U, 80U, 96U, 128U, 256U, 0U}) {
    if (dim == config.head_dim) break;
    if (dim == 0) return refuse("head_dim", config.head_dim, "32, 48, 64, 80, 96, 128 or 256");
  }
  const std::pair<const char*, uint32_t> sizes[] = {{"hidden_size", config.hidden_size},
                                                    {"intermediate_size", config.intermediate_size},
                                                    {"moe_intermediate_size", config.experts.intermediate_size}};
  for (const auto& [name, size] : sizes) {
    if (size % 8 != 0) return refuse(name, size, "a multiple of 8");
  }
  if (config.experts.chosen > 32) return refuse("num_experts_per_tok", config.experts.chosen, "at most 32");
  if (config.experts.count > 1024) return refuse("num_experts", config.experts.count, "at most 1024");
  if (!std::has_single_bit(limits.tokens_per_block) || limits.tokens_per_block < 16)
    return refuse("tokens_per_block", limits.tokens_per_block, "a power of two from 16 up");
  if (limits.max_batch_size == 0) return invalid_argument("max_batch_size must be at least 1");
  if (limits.max_batch_size > 4096) return refuse("max_batch_size", limits.max_batch_size, "at most 4096");
  if (limits.max_num_tokens == 0) return invalid_argument("max_num_tokens must be at least 1");
  if (limits.max_num_tokens > 65'536) return refuse("max_num_tokens", limits.max_num_tokens, "at most 65536");
  return {};
}

Result<std::unique_ptr<Executor>> make_cuda_executor(CudaDevice device, const ModelConfig& config,
                                                     const CudaWeights& weights, ExecutorLimits limits,
                                                     const CudaExecutorOptions& options) {
  if (auto checked = check_cuda_model(config, limits); !checked) return checked.error();
  auto executor = std::make_unique<CudaExecutor>(std::move(device), config, weights, limits);
  if (auto done = executor->prepare(options); !done) return done.error();
  return std::unique_ptr<Executor>(std::move(executor));
}

}  // namespace dyn::native

#include "native/exec/cpu/cpu_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "native/exec/cpu/attention.h"
#include "native/exec/cpu/cpu_topology.h"
#include "native/exec/cpu/experts.h"
#include "native/exec/cpu/fast/layers.h"
#include "native/exec/cpu/kernels.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/exec/plan_check.h"
#include "native/exec/rope.h"
#include "native/sample/sampler.h"

namespace dyn::native {
namespace {

constexpr uint32_t kMaxTokensPerStep = 1u << 20;
constexpr uint32_t kMaxBatchSize = 1u << 16;
constexpr uint32_t kMaxTokensPerBlock = 1024;
constexpr unsigned kMaxThreads = 1024;
constexpr uint32_t kTokensPerItem = 8;    // of elementwise work
constexpr uint32_t kSlicesPerThread = 4;  // of a matrix product: enough to balance threads, few enough to cost nothing

// Activations of a step, cut from one arena. T = max_num_tokens, B = max_batch_size.
struct Activations {
  Activations(const ModelConfig& config, const ExecutorLimits& limits) : config_(config), limits_(limits) {}

  [[nodiscard]] uint64_t bytes() {
    uint64_t total = 0;
    for (const auto& [buffer, floats] : buffers()) total += padded(floats);
    return total * sizeof(float);
  }

  Result<void> allocate() {
    auto arena = HostArena::allocate(bytes());
    if (!arena) return arena.error().with_context("activations");
    memory = std::move(*arena);
    auto* at = reinterpret_cast<float*>(memory.data());
    for (const auto& [buffer, floats] : buffers()) {
      *buffer = at;
      at += padded(floats);
    }
    return {};
  }

  float* x = nullptr;          // [T][hidden] residual stream
  float* normed = nullptr;     // [T][hidden]
  float* qkv = nullptr;        // [T][qkv]
  float* attention = nullptr;  // [T][q]
  float* gate_up = nullptr;    // [T][2 intermediate]; the activation goes into its first half
  float* cos = nullptr;        // [rope][T][head_dim / 2], the local one second
  float* sin = nullptr;
  float* last = nullptr;    // [B][hidden] normed residual of sampled rows
  float* logits = nullptr;  // [B][vocab]
  HostArena memory;

 private:
  static uint64_t padded(uint64_t floats) { return (floats + kVectorAlign - 1) / kVectorAlign * kVectorAlign; }

  std::array<std::pair<float**, uint64_t>, 9> buffers() {
    const uint64_t tokens = limits_.max_num_tokens;
    const uint64_t batch = limits_.max_batch_size;
    const uint64_t ropes = config_.local_rope ? 2 : 1;
    return {{
        {&x, tokens * config_.hidden_size},
        {&normed, tokens * config_.hidden_size},
        {&qkv, tokens * config_.qkv_size()},
        {&attention, tokens * config_.q_size()},
        {&gate_up, tokens * 2 * config_.intermediate_size},
        {&cos, ropes * tokens * config_.head_dim / 2},
        {&sin, ropes * tokens * config_.head_dim / 2},
        {&last, batch * config_.hidden_size},
        {&logits, batch * config_.vocab_size},
    }};
  }

  const ModelConfig& config_;
  const ExecutorLimits& limits_;
};

class CpuExecutor final : public Executor {
 public:
  // `fast`: of the fast path, null on the oracle's.
  CpuExecutor(ModelConfig config, Weights weights, const ExecutorLimits& limits, const Kernels& kernels,
              const FastKernels* fast, const std::vector<ThreadPlace>& threads)
      : config_(std::move(config)),
        weights_(std::move(weights)),
        limits_(limits),
        kernels_(kernels),
        pool_(threads),
        layout_(config_, limits.tokens_per_block),
        attention_(config_, layout_, kernels, pool_),
        experts_(config_, limits_, kernels, pool_),
        buffers_(config_, limits_),
        slots_(limits.max_batch_size) {
    frequencies_.push_back(rotary_frequencies(config_.rope, config_.head_dim));
    if (config_.local_rope) frequencies_.push_back(rotary_frequencies(*config_.local_rope, config_.head_dim));
    long_frequencies_ = rotary_frequencies(config_.rope, config_.head_dim, true);
    for (unsigned i = 0; i < pool_.size(); ++i) samplers_.emplace_back(config_.vocab_size);
    if (fast != nullptr) {
      fast_ = std::make_unique<FastLayers>(config_, weights_, limits_, *fast, kernels_, pool_);
    }
  }

  Result<void> allocate() {
    if (auto done = buffers_.allocate(); !done) return done;
    if (fast_ != nullptr) return fast_->allocate();
    if (auto done = experts_.allocate(); !done) return done;
    auto kv = HostArena::allocate(uint64_t{limits_.num_pages} * layout_.page * sizeof(float));
    if (!kv) return kv.error().with_context("KV pool");
    kv_memory_ = std::move(*kv);
    kv_ = reinterpret_cast<float*>(kv_memory_.data());
    return {};
  }

  [[nodiscard]] const ExecutorLimits& limits() const override { return limits_; }
  // The calling thread computes, so there is nothing to overlap with.
  [[nodiscard]] uint32_t pipeline_depth() const override { return 1; }

  Result<void> enqueue(const StepPlan& plan) override {
    if (pending_) return internal_error("the step before is not collected");
    if (auto checked = check_plan(plan, limits_, config_.vocab_size, last_tokens_.size(), config_.window()); !checked) {
      return checked;
    }
    for (const SlotStart& start : plan.slot_starts) {
      slots_[start.slot].start(start.sampling, start.prompt, start.generated, config_.vocab_size);
    }
    copy_pages(plan);
    forward(plan);
    score_prompts(plan);
    sample(plan);
    pending_ = true;
    return {};
  }

  Result<void> collect(StepResult& result) override {
    if (!pending_) return internal_error("no step was enqueued");
    pending_ = false;
    std::swap(result, result_);
    last_tokens_ = result.tokens;
    return {};
  }

  [[nodiscard]] uint64_t active_bytes(const StepPlan& plan) const override {
    uint64_t bytes = plan.num_tokens() * weights_.embedding.row_bytes();
    for (const LayerWeights& layer : weights_.layers) {
      bytes += layer.qkv.bytes() + layer.o.bytes() + layer.gate_up.bytes() + layer.down.bytes();
      if (layer.experts.empty()) continue;
      // All tokens may choose the same ones.
      const ExpertWeights& expert = layer.experts.front();
      bytes += layer.router.bytes() + config_.experts.chosen * (expert.gate_up.bytes() + expert.down.bytes());
    }
    if (!plan.samples.empty() || !plan.prompt_logprobs.empty()) bytes += weights_.lm_head.bytes();
    uint64_t kv_tokens = 0;  // of all layers
    for (uint32_t i = 0; i < config_.num_layers; ++i) {
      kv_tokens += plan.num_tokens();  // written
      const uint64_t window = config_.layer(i).window;
      for (size_t r = 0; r < plan.num_rows(); ++r) {  // read
        const auto context = static_cast<uint64_t>(plan.context_lens[r]);
        const uint64_t tokens = plan.row_offsets[r + 1] - plan.row_offsets[r];
        kv_tokens += window == 0 ? context : std::min(context, window - 1 + tokens);
      }
    }
    return bytes + kv_tokens * 2 * config_.kv_size() * (fast_ != nullptr ? sizeof(uint16_t) : sizeof(float));
  }

 private:
  // item(first, last) over runs of tokens.
  template <class Item>
  void for_tokens(uint32_t tokens, const Item& item) {
    pool_.run((tokens + kTokensPerItem - 1) / kTokensPerItem,
              [&](uint32_t i, unsigned) { item(i * kTokensPerItem, std::min(tokens, (i + 1) * kTokensPerItem)); });
  }

  void multiply(const GemmArgs& args) {
    const uint32_t rows = args.weights->rows;
    const uint32_t slices = pool_.size() == 1 ? 1 : pool_.size() * kSlicesPerThread;
    const uint32_t per_slice =
        (rows + slices * kernels_.row_tile - 1) / (slices * kernels_.row_tile) * kernels_.row_tile;
    pool_.run((rows + per_slice - 1) / per_slice,
              [&](uint32_t i, unsigned) { kernels_.gemm(args, i * per_slice, std::min(rows, (i + 1) * per_slice)); });
  }

  void norm(const float* x, Vector weight, uint32_t tokens, float* y) {
    for_tokens(tokens, [&](uint32_t first, uint32_t last) {
      for (size_t t = first; t < last; ++t) {
        kernels_.rms_norm(x + t * config_.hidden_size, weight, config_.norm_eps, config_.hidden_size,
                          y + t * config_.hidden_size);
      }
    });
  }

  // A product into the residual stream, normed before where the model does that.
  void project(const Matrix& weights, Vector bias, const float* from, size_t from_stride, uint32_t tokens,
               Vector post_norm) {
    multiply({.weights = &weights,
              .bias = bias,
              .x = from,
              .x_stride = from_stride,
              .m = tokens,
              .y = post_norm == nullptr ? buffers_.x : buffers_.normed,
              .y_stride = config_.hidden_size,
              .add = post_norm == nullptr});
    if (post_norm == nullptr) return;
    for_tokens(tokens, [&](uint32_t first, uint32_t last) {
      for (size_t t = first; t < last; ++t) {
        float* y = buffers_.normed + t * config_.hidden_size;
        float* x = buffers_.x + t * config_.hidden_size;
        kernels_.rms_norm(y, post_norm, config_.norm_eps, config_.hidden_size, y);
        for (uint32_t i = 0; i < config_.hidden_size; ++i) x[i] += y[i];
      }
    });
  }

  void forward(const StepPlan& plan) {
    embed(plan);
    if (fast_ != nullptr) return fast_->run(plan, buffers_.x, buffers_.cos, buffers_.sin);
    place_tokens(plan);
    attention_.plan(plan);
    for (uint32_t i = 0; i < config_.num_layers; ++i) {
      attend(plan, i, weights_.layers[i]);
      feed_forward(plan, weights_.layers[i]);
    }
  }

  void copy_pages(const StepPlan& plan) {
    pool_.run(static_cast<uint32_t>(plan.page_copies.size()), [&](uint32_t i, unsigned) {
      const PageCopy& copy = plan.page_copies[i];
      if (fast_ != nullptr) return fast_->copy_page(copy.from, copy.to);
      std::memcpy(kv_ + static_cast<size_t>(copy.to) * layout_.page,
                  kv_ + static_cast<size_t>(copy.from) * layout_.page, layout_.page * sizeof(float));
    });
  }

  // Input rows, and the rotary angles of their positions.
  void embed(const StepPlan& plan) {
    const uint32_t half = rotary_dim_ / 2;
    long_rope_.assign(plan.num_tokens(), 0);
    for (size_t r = 0; r < plan.long_rope.size(); ++r) {
      std::fill(long_rope_.begin() + plan.row_offsets[r], long_rope_.begin() + plan.row_offsets[r + 1],
                plan.long_rope[r]);
    }
    for_tokens(static_cast<uint32_t>(plan.num_tokens()), [&](uint32_t first, uint32_t last) {
      for (size_t t = first; t < last; ++t) {
        const TokenId token =
            plan.tokens[t] == kTokenOfPreviousStep ? last_tokens_[plan.from_sample[t]] : plan.tokens[t];
        float* row = buffers_.x + t * config_.hidden_size;
        const bool packed = weights_.embedding.layout != MatrixLayout::kRowMajor;
        packed ? unpack_row(weights_.embedding, token, row) : kernels_.widen(weights_.embedding, token, row);
        if (config_.embedding_scale != 1.0F) {
          float* x = buffers_.x + t * config_.hidden_size;
          for (uint32_t i = 0; i < config_.hidden_size; ++i) x[i] *= config_.embedding_scale;
        }
        for (size_t rope = 0; rope < frequencies_.size(); ++rope) {
          const size_t at = (rope * limits_.max_num_tokens + t) * half;
          const float* frequencies = (long_rope_[t] != 0 ? long_frequencies_ : frequencies_[rope]).data();
          for (uint32_t i = 0; i < half; ++i) {
            const float angle = static_cast<float>(plan.positions[t]) * frequencies[i];
            buffers_.cos[at + i] = std::cos(angle) * config_.rope.attention_scale;
            buffers_.sin[at + i] = std::sin(angle) * config_.rope.attention_scale;
          }
        }
      }
    });
  }

  // Where each token's keys and values go.
  void place_tokens(const StepPlan& plan) {
    places_.resize(plan.num_tokens());
    for (size_t r = 0; r < plan.num_rows(); ++r) {
      const uint32_t begin = plan.row_offsets[r];
      const uint32_t end = plan.row_offsets[r + 1];
      const auto first = static_cast<uint32_t>(plan.context_lens[r]) - (end - begin);
      for (uint32_t t = begin; t < end; ++t) {
        const uint32_t index = first + (t - begin);
        const auto page = static_cast<size_t>(plan.pages[plan.page_offsets[r] + index / limits_.tokens_per_block]);
        places_[t] = {.page = page * layout_.page, .token = index % limits_.tokens_per_block};
      }
    }
  }

  void attend(const StepPlan& plan, uint32_t index, const LayerWeights& layer) {
    const auto tokens = static_cast<uint32_t>(plan.num_tokens());
    norm(buffers_.x, layer.attention_norm, tokens, buffers_.normed);
    multiply({.weights = &layer.qkv,
              .bias = layer.qkv_bias,
              .x = buffers_.normed,
              .x_stride = config_.hidden_size,
              .m = tokens,
              .y = buffers_.qkv,
              .y_stride = config_.qkv_size()});
    for_tokens(tokens, [&](uint32_t first, uint32_t last) {
      for (uint32_t t = first; t < last; ++t) finish_qkv(t, index, layer);
    });
    attention_.run(plan, index, buffers_.qkv, kv_, buffers_.attention);
    project(layer.o, layer.o_bias, buffers_.attention, config_.q_size(), tokens, layer.post_attention_norm);
  }

  // Norm and rotation of one token's query and key heads; keys and values into the pool.
  void finish_qkv(size_t t, uint32_t layer_index, const LayerWeights& layer) {
    const uint32_t dim = config_.head_dim;
    const size_t rope = config_.uses_local_rope(layer_index) ? 1 : 0;
    const size_t angles = (rope * limits_.max_num_tokens + t) * (rotary_dim_ / 2);
    const float* cos = buffers_.cos + angles;
    const float* sin = buffers_.sin + angles;
    float* head = buffers_.qkv + t * config_.qkv_size();
    auto prepare = [&](Vector norm_weight) {
      if (norm_weight != nullptr) kernels_.rms_norm(head, norm_weight, config_.norm_eps, dim, head);
      kernels_.rotate(head, cos, sin, rotary_dim_);
    };
    for (uint32_t h = 0; h < config_.num_heads; ++h, head += dim) prepare(layer.q_norm);
    const Place place = places_[t];
    for (uint32_t h = 0; h < config_.num_kv_heads; ++h, head += dim) {
      prepare(layer.k_norm);
      float* keys = kv_ + place.page + layout_.keys(layer_index, h) + place.token;
      for (uint32_t d = 0; d < dim; ++d) keys[size_t{d} * layout_.token_stride] = head[d];
    }
    for (uint32_t h = 0; h < config_.num_kv_heads; ++h, head += dim) {
      float* values = kv_ + place.page + layout_.values(layer_index, config_.num_kv_heads, h);
      std::memcpy(values + size_t{place.token} * dim, head, dim * sizeof(float));
    }
  }

  void feed_forward(const StepPlan& plan, const LayerWeights& layer) {
    const auto tokens = static_cast<uint32_t>(plan.num_tokens());
    const uint32_t inner = config_.intermediate_size;
    norm(buffers_.x, layer.mlp_norm, tokens, buffers_.normed);
    if (!layer.experts.empty()) return experts_.run(layer, buffers_.normed, tokens, buffers_.x);
    multiply({.weights = &layer.gate_up,
              .bias = layer.gate_up_bias,
              .x = buffers_.normed,
              .x_stride = config_.hidden_size,
              .m = tokens,
              .y = buffers_.gate_up,
              .y_stride = size_t{2} * inner});
    const auto activate = gated_activation(kernels_, config_.activation);
    for_tokens(tokens, [&](uint32_t first, uint32_t last) {
      for (size_t t = first; t < last; ++t) {
        float* gate = buffers_.gate_up + t * 2 * inner;
        activate(gate, gate + inner, inner, gate);
      }
    });
    project(layer.down, layer.down_bias, buffers_.gate_up, size_t{2} * inner, tokens, layer.post_mlp_norm);
  }

  // Final norm and LM head for `count` tokens, the i-th of them token(i): their logits are in buffers_.logits then.
  template <class Token>
  void project(uint32_t count, const Token& token) {
    if (count == 0) return;
    for (uint32_t i = 0; i < count; ++i) {
      kernels_.rms_norm(buffers_.x + size_t{token(i)} * config_.hidden_size, weights_.final_norm, config_.norm_eps,
                        config_.hidden_size, buffers_.last + size_t{i} * config_.hidden_size);
    }
    if (fast_ != nullptr) return fast_->project(buffers_.last, count, buffers_.logits);
    multiply({.weights = &weights_.lm_head,
              .x = buffers_.last,
              .x_stride = config_.hidden_size,
              .m = count,
              .y = buffers_.logits,
              .y_stride = config_.vocab_size});
  }

  [[nodiscard]] std::span<const float> logits(uint32_t i) const {
    return {buffers_.logits + size_t{i} * config_.vocab_size, config_.vocab_size};
  }

  // As many prompt tokens at once as there is room for logits.
  void score_prompts(const StepPlan& plan) {
    result_.prompt_logprobs.clear();
    result_.prompt_top.clear();
    for (const PromptLogprobs& wanted : plan.prompt_logprobs) {
      const size_t first = result_.prompt_logprobs.size();
      const size_t first_top = result_.prompt_top.size();
      result_.prompt_logprobs.resize(first + wanted.next.size());
      result_.prompt_top.resize(first_top + wanted.next.size() * wanted.top);
      for (size_t begin = 0; begin < wanted.next.size(); begin += limits_.max_batch_size) {
        const auto count = static_cast<uint32_t>(std::min<size_t>(limits_.max_batch_size, wanted.next.size() - begin));
        project(count, [&](uint32_t i) { return plan.row_offsets[wanted.row] + begin + i; });
        pool_.run(count, [&](uint32_t i, unsigned worker) {
          const std::span top = std::span(result_.prompt_top).subspan(first_top + (begin + i) * wanted.top, wanted.top);
          result_.prompt_logprobs[first + begin + i] = samplers_[worker].score(logits(i), wanted.next[begin + i], top);
        });
      }
    }
  }

  void sample(const StepPlan& plan) {
    const size_t samples = plan.samples.size();
    project(static_cast<uint32_t>(samples), [&](uint32_t s) { return plan.row_offsets[plan.samples[s].row + 1] - 1; });
    result_.tokens.assign(samples, 0);
    result_.logprobs.assign(samples, 0.0F);
    result_.not_finite.assign(samples, 0);
    result_.top_offsets.assign(1, 0);
    for (const SampleRow& row : plan.samples) {
      const auto wanted = static_cast<uint32_t>(std::max(row.logprobs, 0));
      result_.top_offsets.push_back(result_.top_offsets.back() + std::min(wanted, config_.vocab_size));
    }
    result_.top.resize(result_.top_offsets.back());
    pool_.run(static_cast<uint32_t>(samples), [&](uint32_t s, unsigned worker) {
      const SampleRow& row = plan.samples[s];
      SamplerSlot& slot = slots_[row.slot];
      const std::span top(result_.top.begin() + result_.top_offsets[s],
                          result_.top.begin() + result_.top_offsets[s + 1]);
      const Sample chosen = samplers_[worker].sample(logits(s), slot, row, top);
      result_.tokens[s] = chosen.token;
      result_.logprobs[s] = chosen.logprob;
      result_.not_finite[s] = chosen.not_finite ? 1 : 0;
      if (!chosen.not_finite) slot.add(chosen.token);
    });
  }

  struct Place {
    size_t page = 0;  // of the pool, in floats
    uint32_t token = 0;
  };

  const ModelConfig config_;
  const Weights weights_;
  const ExecutorLimits limits_;
  const Kernels& kernels_;
  ThreadPool pool_;
  const KvLayout layout_;
  Attention attention_;
  Experts experts_;
  const uint32_t rotary_dim_ = rotary_dim(config_.rope, config_.head_dim);
  std::vector<std::vector<float>> frequencies_;  // [rope][rotary_dim / 2], the local one second
  std::vector<float> long_frequencies_;
  std::vector<uint8_t> long_rope_;  // [T]
  Activations buffers_;
  std::unique_ptr<FastLayers> fast_;
  HostArena kv_memory_;
  float* kv_ = nullptr;

  std::vector<Place> places_;  // [T]
  std::vector<SamplerSlot> slots_;
  std::vector<Sampler> samplers_;  // one a worker
  std::vector<TokenId> last_tokens_;
  StepResult result_;
  bool pending_ = false;
};

Result<void> check(const ModelConfig& config, const ExecutorLimits& limits, const CpuOptions& options) {
  const std::pair<const char*, uint32_t> sizes[] = {{"hidden_size", config.hidden_size},
                                                    {"intermediate_size", config.intermediate_size},
                                                    {"moe_intermediate_size", config.experts.intermediate_size},
                                                    {"head_dim", config.head_dim}};
  for (const auto& [name, size] : sizes) {
    if (size % kVectorAlign != 0) {
      return unsupported(fmt::format("{} = {}: the CPU executor needs a multiple of {}", name, size, kVectorAlign));
    }
  }
  if (const uint32_t group = config.num_heads / config.num_kv_heads; group > Attention::kMaxGroup) {
    return unsupported(
        fmt::format("{} query heads share a KV head; the CPU executor supports {}", group, Attention::kMaxGroup));
  }
  const struct {
    const char* name;
    uint32_t value;
    uint32_t limit;
  } numbers[] = {{"max_batch_size", limits.max_batch_size, kMaxBatchSize},
                 {"max_num_tokens", limits.max_num_tokens, kMaxTokensPerStep},
                 {"tokens_per_block", limits.tokens_per_block, kMaxTokensPerBlock},
                 {"num_pages", limits.num_pages, INT32_MAX}};
  for (const auto& number : numbers) {
    if (number.value == 0 || number.value > number.limit) {
      return invalid_argument(fmt::format("{} = {}: must be from 1 to {}", number.name, number.value, number.limit));
    }
  }
  if (options.threads > kMaxThreads) {
    return invalid_argument(fmt::format("{} compute threads: at most {}", options.threads, kMaxThreads));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Executor>> make_cpu_executor(ModelConfig config, Weights weights, const ExecutorLimits& limits,
                                                    const CpuOptions& options) {
  if (auto checked = check(config, limits, options); !checked) return checked.error();
  const Kernels* kernels = kernels_for(options.isa);
  if (kernels == nullptr) return unsupported("this machine lacks the instruction set that was asked for");
  const FastKernels* fast = nullptr;
  if (path_of(weights.layout) == CpuPath::kFast) fast = fast_kernels_for(options.isa);
  auto executor = std::make_unique<CpuExecutor>(std::move(config), std::move(weights), limits, *kernels, fast,
                                                place_threads(options.threads));
  if (auto done = executor->allocate(); !done) return done.error();
  return std::unique_ptr<Executor>(std::move(executor));
}

uint64_t scratch_bytes(const ModelConfig& config, const ExecutorLimits& limits) {
  return Activations(config, limits).bytes() + Experts::bytes(config, limits.max_num_tokens);
}

std::string_view cpu_kernels_name(CpuPath path, CpuIsa isa) {
  if (kernels_for(isa) == nullptr) return "none";
  return path == CpuPath::kFast ? fast_kernels_for(isa)->name : kernels_for(isa)->name;
}

uint64_t kv_bytes_per_page(const ModelConfig& config, uint32_t tokens_per_block, CpuPath path) {
  if (path == CpuPath::kFast) return FastKvLayout(config, tokens_per_block).page_bytes();
  return KvLayout(config, tokens_per_block).page * sizeof(float);
}

}  // namespace dyn::native

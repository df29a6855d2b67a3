#include "native/exec/cpu/fast/layers.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "native/exec/rope.h"

namespace dyn::native {
namespace {

constexpr uint32_t kFewTokens = 16;     // up to here every worker norms for itself instead of waiting for another
constexpr uint32_t kChunkTokens = 256;  // of an item: what its columns take stays in L2
constexpr uint32_t kTokensPerItem = 8;  // of elementwise work
constexpr uint32_t kSlicesPerThread = 4;
constexpr uint32_t kColumnPanels = 4;  // of gate and of up, an item
constexpr uint64_t kAlignment = 64;

uint64_t aligned(uint64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Slices of a product begin at multiples of so many panels: what a tile of so many rows likes.
uint32_t panels_together(uint32_t m) {
  return m == 1 ? 1 : m <= 64 ? 2 : 4;
}

uint32_t widest(const ModelConfig& config) {
  return std::max({config.hidden_size, config.intermediate_size, config.q_size()});
}

}  // namespace

FastLayers::Chunks::Chunks(uint32_t tokens)
    : count((tokens + kChunkTokens - 1) / kChunkTokens), size((tokens + count - 1) / count) {}

FastLayers::FastLayers(const ModelConfig& config, const Weights& weights, const ExecutorLimits& limits,
                       const FastKernels& fast, const Kernels& kernels, ThreadPool& pool)
    : config_(config),
      weights_(weights),
      limits_(limits),
      fast_(fast),
      kernels_(kernels),
      pool_(pool),
      layout_(config, limits.tokens_per_block),
      attention_(config, layout_, fast, pool),
      experts_(config, limits, kernels, pool, &fast),
      scratch_(pool.size()) {}

Result<void> FastLayers::allocate() {
  const uint64_t tokens = limits_.max_num_tokens;
  const uint64_t x = fast_.activation_bytes;
  const uint64_t column_floats = std::max(config_.head_dim, 2 * kColumnPanels * kPanelRows);
  const bool int8 = weights_.layout == MatrixLayout::kPackedInt8;
  std::vector<std::pair<std::byte**, uint64_t>> buffers = {
      {&normed_, tokens * config_.hidden_size * x},
      {&q_, tokens * config_.q_size() * x},
      {&attention_out_, tokens * config_.q_size() * x},
      {&inner_, tokens * config_.intermediate_size * x},
      {&head_rows_, uint64_t{limits_.max_batch_size} * config_.hidden_size * x},
      {reinterpret_cast<std::byte**>(&product_), tokens * config_.hidden_size * sizeof(float)}};
  for (Scratch& scratch : scratch_) {
    scratch.head.resize(config_.head_dim);
    buffers.emplace_back(&scratch.normed, kFewTokens * config_.hidden_size * x);
    buffers.emplace_back(reinterpret_cast<std::byte**>(&scratch.columns), kChunkTokens * column_floats * sizeof(float));
    if (!int8) continue;
    buffers.emplace_back(reinterpret_cast<std::byte**>(&scratch.widened),
                         uint64_t{FastKernels::kMaxPanels} * kPanelRows * widest(config_) * sizeof(uint16_t));
  }
  uint64_t total = 0;
  for (const auto& [buffer, bytes] : buffers) total += aligned(bytes);
  auto memory = HostArena::allocate(total);
  if (!memory) return memory.error().with_context("activations");
  memory_ = std::move(*memory);
  std::byte* at = memory_.data();
  for (const auto& [buffer, bytes] : buffers) {
    *buffer = at;
    at += aligned(bytes);
  }
  auto kv = HostArena::allocate(uint64_t{limits_.num_pages} * layout_.page_bytes());
  if (!kv) return kv.error().with_context("KV pool");
  kv_memory_ = std::move(*kv);
  kv_ = reinterpret_cast<uint16_t*>(kv_memory_.data());
  return experts_.allocate();
}

void FastLayers::copy_page(PageId from, PageId to) {
  std::memcpy(kv_ + static_cast<size_t>(to) * layout_.page, kv_ + static_cast<size_t>(from) * layout_.page,
              layout_.page_bytes());
}

void FastLayers::run(const StepPlan& plan, float* x, const float* cos, const float* sin) {
  tokens_ = static_cast<uint32_t>(plan.num_tokens());
  x_ = x;
  cos_ = cos;
  sin_ = sin;
  place_tokens(plan);
  attention_.plan(plan);
  for (uint32_t i = 0; i < config_.num_layers; ++i) {
    attend(plan, i);
    feed_forward(weights_.layers[i]);
  }
}

void FastLayers::place_tokens(const StepPlan& plan) {
  places_.resize(tokens_);
  for (size_t r = 0; r < plan.num_rows(); ++r) {
    const uint32_t begin = plan.row_offsets[r];
    const uint32_t end = plan.row_offsets[r + 1];
    const auto first = static_cast<uint32_t>(plan.context_lens[r]) - (end - begin);
    for (uint32_t t = begin; t < end; ++t) {
      const uint32_t index = first + (t - begin);
      const auto page = static_cast<size_t>(plan.pages[plan.page_offsets[r] + index / limits_.tokens_per_block]);
      places_[t] = {.page = page * layout_.page, .token = index % limits_.tokens_per_block, .last = t + 1 == end};
    }
  }
}

// The residual stream, normed, is what the next products read; see normed().
void FastLayers::norm(Vector weight) {
  norm_weight_ = weight;
  ++norm_serial_;
  if (tokens_ <= kFewTokens) return;
  const size_t hidden = config_.hidden_size;
  pool_.run((tokens_ + kTokensPerItem - 1) / kTokensPerItem, [&](uint32_t run, unsigned) {
    for (uint32_t t = run * kTokensPerItem, end = std::min(tokens_, t + kTokensPerItem); t < end; ++t) {
      fast_.rms_norm(x_ + t * hidden, weight, config_.norm_eps, config_.hidden_size,
                     normed_ + t * hidden * fast_.activation_bytes);
    }
  });
}

// [tokens][hidden]; from inside an item.
const std::byte* FastLayers::normed(unsigned worker) {
  if (tokens_ > kFewTokens) return normed_;
  Scratch& scratch = scratch_[worker];
  if (scratch.normed_serial != norm_serial_) {
    const size_t hidden = config_.hidden_size;
    for (uint32_t t = 0; t < tokens_; ++t) {
      fast_.rms_norm(x_ + t * hidden, norm_weight_, config_.norm_eps, config_.hidden_size,
                     scratch.normed + t * hidden * fast_.activation_bytes);
    }
    scratch.normed_serial = norm_serial_;
  }
  return scratch.normed;
}

void FastLayers::multiply(const LinearArgs& args) {
  const Chunks chunks(args.m);
  const uint32_t panels = args.weights->panels();
  const uint32_t together = panels_together(args.m);
  const uint32_t units = (panels + together - 1) / together;
  const uint32_t slices = std::min(units, pool_.size() == 1 ? 1 : pool_.size() * kSlicesPerThread);
  pool_.run(slices * chunks.count, [&](uint32_t i, unsigned worker) {
    const uint64_t slice = i / chunks.count;
    const uint32_t first = i % chunks.count * chunks.size;
    const auto begin = static_cast<uint32_t>(units * slice / slices * together);
    const auto end = static_cast<uint32_t>(std::min<uint64_t>(panels, units * (slice + 1) / slices * together));
    LinearArgs part = args;
    part.m = std::min(chunks.size, args.m - first);
    part.x += first * args.x_stride * fast_.activation_bytes;
    part.y += first * args.y_stride + begin * kPanelRows;
    part.widened = scratch_[worker].widened;
    fast_.linear(part, begin, end);
  });
}

void FastLayers::attend(const StepPlan& plan, uint32_t index) {
  const LayerWeights& layer = weights_.layers[index];
  const uint32_t dim = config_.head_dim;
  const uint32_t heads = config_.num_heads + 2 * config_.num_kv_heads;
  const Chunks chunks(tokens_);
  norm(layer.attention_norm);
  pool_.run(heads * chunks.count, [&](uint32_t i, unsigned worker) {
    const uint32_t head = i / chunks.count;
    const uint32_t first = i % chunks.count * chunks.size;
    const uint32_t count = std::min(chunks.size, tokens_ - first);
    Scratch& scratch = scratch_[worker];
    fast_.linear({.weights = &layer.qkv,
                  .bias = layer.qkv_bias,
                  .x = normed(worker) + size_t{first} * config_.hidden_size * fast_.activation_bytes,
                  .x_stride = config_.hidden_size,
                  .m = count,
                  .y = scratch.columns,
                  .y_stride = dim,
                  .widened = scratch.widened},
                 head * dim / kPanelRows, (head + 1) * dim / kPanelRows);
    for (uint32_t t = 0; t < count; ++t) {
      finish_head(index, head, first + t, scratch.columns + size_t{t} * dim, scratch);
    }
  });
  attention_.run(plan, index, q_, kv_, attention_out_);
  add_product(layer.o, layer.o_bias, attention_out_, config_.q_size(), layer.post_attention_norm);
}

// Norm and rotation of one head of one token; a query to where attention reads it, keys and values into the pool.
void FastLayers::finish_head(uint32_t index, uint32_t head, uint32_t token, float* values, Scratch& scratch) {
  const LayerWeights& layer = weights_.layers[index];
  const uint32_t dim = config_.head_dim;
  const bool query = head < config_.num_heads;
  const bool key = !query && head < config_.num_heads + config_.num_kv_heads;
  if (query || key) {
    const Vector norm_weight = query ? layer.q_norm : layer.k_norm;
    if (norm_weight != nullptr) kernels_.rms_norm(values, norm_weight, config_.norm_eps, dim, values);
    const size_t rope = config_.uses_local_rope(index) ? 1 : 0;
    const uint32_t rotated = rotary_dim(config_.rope, dim);
    const size_t angles = (rope * limits_.max_num_tokens + token) * (rotated / 2);
    kernels_.rotate(values, cos_ + angles, sin_ + angles, rotated);
  }
  if (query) {
    fast_.narrow(values, dim, q_ + (size_t{token} * config_.num_heads + head) * dim * fast_.activation_bytes);
    return;
  }
  const Place place = places_[token];
  fast_.narrow_bf16(values, dim, scratch.head.data());
  if (key) {
    layout_.write_key(kv_ + place.page + layout_.keys(index, head - config_.num_heads), place.token,
                      scratch.head.data());
  } else {
    const uint32_t kv_head = head - config_.num_heads - config_.num_kv_heads;
    layout_.write_value(kv_ + place.page + layout_.values(index, config_.num_kv_heads, kv_head), place.token,
                        scratch.head.data(), place.last);
  }
}

// A product into the residual stream, normed before where the model does that.
void FastLayers::add_product(const Matrix& weights, Vector bias, const std::byte* from, size_t from_stride,
                             Vector post_norm) {
  const uint32_t hidden = config_.hidden_size;
  multiply({.weights = &weights,
            .bias = bias,
            .x = from,
            .x_stride = from_stride,
            .m = tokens_,
            .y = post_norm == nullptr ? x_ : product_,
            .y_stride = hidden,
            .add = post_norm == nullptr});
  if (post_norm == nullptr) return;
  pool_.run((tokens_ + kTokensPerItem - 1) / kTokensPerItem, [&](uint32_t run, unsigned) {
    for (uint32_t t = run * kTokensPerItem, end = std::min(tokens_, t + kTokensPerItem); t < end; ++t) {
      float* y = product_ + size_t{t} * hidden;
      float* x = x_ + size_t{t} * hidden;
      kernels_.rms_norm(y, post_norm, config_.norm_eps, hidden, y);
      for (uint32_t i = 0; i < hidden; ++i) x[i] += y[i];
    }
  });
}

void FastLayers::feed_forward(const LayerWeights& layer) {
  if (!layer.experts.empty()) {
    const size_t hidden = config_.hidden_size;
    pool_.run((tokens_ + kTokensPerItem - 1) / kTokensPerItem, [&](uint32_t run, unsigned) {
      for (uint32_t t = run * kTokensPerItem, end = std::min(tokens_, t + kTokensPerItem); t < end; ++t) {
        kernels_.rms_norm(x_ + t * hidden, layer.mlp_norm, config_.norm_eps, config_.hidden_size,
                          product_ + t * hidden);
      }
    });
    return experts_.run(layer, product_, tokens_, x_);
  }
  const uint32_t inner = config_.intermediate_size;
  const uint32_t panels = inner / kPanelRows;  // of gate; up follows
  const uint32_t groups = (panels + kColumnPanels - 1) / kColumnPanels;
  const Chunks chunks(tokens_);
  const auto activate = config_.activation == Activation::kSilu ? fast_.silu_mul : fast_.gelu_mul;
  norm(layer.mlp_norm);
  pool_.run(groups * chunks.count, [&](uint32_t i, unsigned worker) {
    const uint32_t begin = i / chunks.count * kColumnPanels;
    const uint32_t end = std::min(panels, begin + kColumnPanels);
    const uint32_t columns = (end - begin) * kPanelRows;
    const uint32_t first = i % chunks.count * chunks.size;
    const uint32_t count = std::min(chunks.size, tokens_ - first);
    Scratch& scratch = scratch_[worker];
    LinearArgs args{.weights = &layer.gate_up,
                    .bias = layer.gate_up_bias,
                    .x = normed(worker) + size_t{first} * config_.hidden_size * fast_.activation_bytes,
                    .x_stride = config_.hidden_size,
                    .m = count,
                    .y = scratch.columns,
                    .y_stride = size_t{2} * columns,
                    .widened = scratch.widened};
    fast_.linear(args, begin, end);
    args.y += columns;
    fast_.linear(args, panels + begin, panels + end);
    for (size_t t = 0; t < count; ++t) {
      const float* gate = scratch.columns + t * 2 * columns;
      activate(gate, gate + columns, columns,
               inner_ + ((first + t) * inner + begin * kPanelRows) * fast_.activation_bytes);
    }
  });
  add_product(layer.down, layer.down_bias, inner_, inner, layer.post_mlp_norm);
}

void FastLayers::project(const float* normed, uint32_t rows, float* logits) {
  const size_t hidden = config_.hidden_size;
  for (size_t i = 0; i < rows; ++i) {
    fast_.narrow(normed + i * hidden, config_.hidden_size, head_rows_ + i * hidden * fast_.activation_bytes);
  }
  multiply({.weights = &weights_.lm_head,
            .x = head_rows_,
            .x_stride = hidden,
            .m = rows,
            .y = logits,
            .y_stride = config_.vocab_size});
}

}  // namespace dyn::native

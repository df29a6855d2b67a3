#include "native/exec/cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace dyn::native {
namespace {

constexpr uint32_t kTokensPerItem = 8;    // of elementwise work
constexpr uint32_t kSlicesPerThread = 4;  // of all products of a layer together

uint64_t padded(uint64_t floats) {
  return (floats + kVectorAlign - 1) / kVectorAlign * kVectorAlign;
}

// item(i) for every i below `count`, some at a time.
template <class Item>
void for_each(ThreadPool& threads, uint32_t count, const Item& item) {
  threads.run((count + kTokensPerItem - 1) / kTokensPerItem, [&](uint32_t run, unsigned) {
    for (uint32_t i = run * kTokensPerItem, end = std::min(count, i + kTokensPerItem); i < end; ++i) item(i);
  });
}

}  // namespace

Experts::Experts(const ModelConfig& config, const ExecutorLimits& limits, const Kernels& kernels, ThreadPool& pool,
                 const FastKernels* fast)
    : config_(config), limits_(limits), kernels_(kernels), threads_(pool), fast_(fast), router_(fast) {
  if (fast != nullptr && fast->activation_bytes != sizeof(float)) router_ = fast_kernels_for(CpuIsa::kAvx512);
}

// Floats a worker's `widened` takes.
uint64_t Experts::widened_floats() const {
  const uint64_t widest = std::max(config_.hidden_size, config_.experts.intermediate_size);
  return fast_ == nullptr ? 0 : FastKernels::kMaxPanels * kPanelRows * widest / 2;
}

uint16_t* Experts::widened(unsigned worker) const {
  return reinterpret_cast<uint16_t*>(widened_ + worker * widened_floats());
}

uint64_t Experts::bytes(const ModelConfig& config, uint64_t tokens) {
  const ExpertTraits& traits = config.experts;
  const uint64_t row = uint64_t{1} + config.hidden_size + uint64_t{2} * traits.intermediate_size;
  return traits.count == 0 ? 0 : tokens * (traits.count + traits.chosen * row) * sizeof(float);
}

Result<void> Experts::allocate() {
  const ExpertTraits& traits = config_.experts;
  if (traits.count == 0) return {};
  const uint64_t tokens = limits_.max_num_tokens;
  const uint64_t rows = tokens * traits.chosen;
  const uint64_t widest = std::max(config_.hidden_size, traits.intermediate_size);
  float* narrowed = nullptr;  // at most a float a value
  const std::pair<float**, uint64_t> buffers[] = {{&probabilities_, tokens * traits.count},
                                                  {&shares_, rows},
                                                  {&rows_, rows * config_.hidden_size},
                                                  {&inner_, rows * 2 * traits.intermediate_size},
                                                  {&narrowed, fast_ == nullptr ? 0 : rows * widest},
                                                  {&widened_, threads_.size() * widened_floats()}};
  uint64_t total = 0;
  for (const auto& [buffer, floats] : buffers) total += padded(floats);
  auto memory = HostArena::allocate(total * sizeof(float));
  if (!memory) return memory.error().with_context("activations of experts");
  memory_ = std::move(*memory);
  auto* at = reinterpret_cast<float*>(memory_.data());
  for (const auto& [buffer, floats] : buffers) {
    *buffer = at;
    at += padded(floats);
  }
  narrowed_ = reinterpret_cast<std::byte*>(narrowed);
  chosen_.resize(rows);
  row_of_.resize(rows);
  token_of_.resize(rows);
  next_.resize(traits.count);
  groups_.reserve(traits.count);
  return {};
}

// Softmax over all experts, then the best of them, their shares brought to a sum of 1 where the model wants that.
void Experts::choose(uint32_t token) {
  const ExpertTraits& traits = config_.experts;
  float* probability = probabilities_ + size_t{token} * traits.count;
  float* share = shares_ + size_t{token} * traits.chosen;
  uint32_t* chosen = chosen_.data() + size_t{token} * traits.chosen;
  const float max = *std::max_element(probability, probability + traits.count);
  float sum = 0.0F;
  for (uint32_t e = 0; e < traits.count; ++e) sum += probability[e] = std::exp(probability[e] - max);
  for (uint32_t e = 0; e < traits.count; ++e) probability[e] /= sum;
  float chosen_sum = 0.0F;
  for (uint32_t k = 0; k < traits.chosen; ++k) {
    constexpr float kTaken = -1.0F;
    uint32_t best = traits.count;
    // Also of NaN some expert is found: the result is NaN, and of this token only.
    for (uint32_t e = 0; e < traits.count; ++e) {
      if (best == traits.count ? probability[e] != kTaken : probability[e] > probability[best]) best = e;
    }
    chosen[k] = best;
    share[k] = probability[best];
    chosen_sum += share[k];
    probability[best] = kTaken;
  }
  if (!traits.normalize) return;
  for (uint32_t k = 0; k < traits.chosen; ++k) share[k] /= chosen_sum;
}

void Experts::route(const LayerWeights& layer, const float* normed, uint32_t tokens) {
  const uint32_t count = config_.experts.count;
  threads_.run((tokens + kTokensPerItem - 1) / kTokensPerItem, [&](uint32_t run, unsigned) {
    const uint32_t begin = run * kTokensPerItem;
    const uint32_t end = std::min(tokens, begin + kTokensPerItem);
    if (fast_ != nullptr) {
      router_->linear({.weights = &layer.router,
                       .x = reinterpret_cast<const std::byte*>(normed + size_t{begin} * config_.hidden_size),
                       .x_stride = config_.hidden_size,
                       .m = end - begin,
                       .y = probabilities_ + size_t{begin} * count,
                       .y_stride = count},
                      0, layer.router.panels());
      for (uint32_t t = begin; t < end; ++t) choose(t);
      return;
    }
    kernels_.gemm({.weights = &layer.router,
                   .x = normed + size_t{begin} * config_.hidden_size,
                   .x_stride = config_.hidden_size,
                   .m = end - begin,
                   .y = probabilities_ + size_t{begin} * count,
                   .y_stride = count},
                  0, count);
    for (uint32_t t = begin; t < end; ++t) choose(t);
  });
}

// Sorts the tokens by expert, counting.
void Experts::group(uint32_t tokens) {
  const uint32_t rows = tokens * config_.experts.chosen;
  std::ranges::fill(next_, 0U);
  for (uint32_t i = 0; i < rows; ++i) ++next_[chosen_[i]];
  groups_.clear();
  uint32_t begin = 0;
  for (uint32_t e = 0; e < config_.experts.count; ++e) {
    const uint32_t end = begin + next_[e];
    if (end > begin) groups_.push_back({.expert = e, .begin = begin, .end = end});
    next_[e] = begin;
    begin = end;
  }
  for (uint32_t i = 0; i < rows; ++i) {
    row_of_[i] = next_[chosen_[i]]++;
    token_of_[row_of_[i]] = i / config_.experts.chosen;
  }
}

// One job for the products of all groups: a decode step has many small ones.
void Experts::multiply(const LayerWeights& layer, Matrix ExpertWeights::* matrix, const float* from, size_t from_stride,
                       float* to, size_t to_stride) {
  const auto groups = static_cast<uint32_t>(groups_.size());
  const uint32_t rows = (layer.experts.front().*matrix).rows;
  const uint32_t wanted = threads_.size() == 1 ? 1 : (threads_.size() * kSlicesPerThread + groups - 1) / groups;
  const uint32_t row_tile = fast_ == nullptr ? kernels_.row_tile : FastKernels::kMaxPanels * kPanelRows;
  const uint32_t per_slice = (rows + wanted * row_tile - 1) / (wanted * row_tile) * row_tile;
  const uint32_t slices = (rows + per_slice - 1) / per_slice;
  threads_.run(groups * slices, [&](uint32_t i, unsigned worker) {
    const Group& group = groups_[i / slices];
    const uint32_t first = i % slices * per_slice;
    if (fast_ != nullptr) {
      const Matrix& weights = layer.experts[group.expert].*matrix;
      fast_->linear({.weights = &weights,
                     .x = narrowed_ + group.begin * size_t{weights.cols} * fast_->activation_bytes,
                     .x_stride = weights.cols,
                     .m = group.end - group.begin,
                     .y = to + group.begin * to_stride + first,
                     .y_stride = to_stride,
                     .widened = widened(worker)},
                    first / kPanelRows, std::min(weights.panels(), (first + per_slice) / kPanelRows));
      return;
    }
    kernels_.gemm({.weights = &(layer.experts[group.expert].*matrix),
                   .x = from + group.begin * from_stride,
                   .x_stride = from_stride,
                   .m = group.end - group.begin,
                   .y = to + group.begin * to_stride,
                   .y_stride = to_stride},
                  first, std::min(rows, first + per_slice));
  });
}

void Experts::run(const LayerWeights& layer, const float* normed, uint32_t tokens, float* x) {
  const uint32_t hidden = config_.hidden_size;
  const uint32_t inner = config_.experts.intermediate_size;
  const uint32_t chosen = config_.experts.chosen;
  route(layer, normed, tokens);
  group(tokens);
  for_each(threads_, tokens * chosen, [&](uint32_t row) {
    const float* from = normed + size_t{token_of_[row]} * hidden;
    if (fast_ != nullptr) {
      fast_->narrow(from, hidden, narrowed_ + size_t{row} * hidden * fast_->activation_bytes);
    } else {
      std::memcpy(rows_ + size_t{row} * hidden, from, hidden * sizeof(float));
    }
  });
  multiply(layer, &ExpertWeights::gate_up, rows_, hidden, inner_, size_t{2} * inner);
  const auto activate = gated_activation(kernels_, config_.activation);
  for_each(threads_, tokens * chosen, [&](uint32_t row) {
    float* gate = inner_ + size_t{row} * 2 * inner;
    activate(gate, gate + inner, inner, gate);
    if (fast_ != nullptr) fast_->narrow(gate, inner, narrowed_ + size_t{row} * inner * fast_->activation_bytes);
  });
  multiply(layer, &ExpertWeights::down, inner_, size_t{2} * inner, rows_, hidden);
  for_each(threads_, tokens, [&](uint32_t t) {
    float* to = x + size_t{t} * hidden;
    const uint32_t* row = row_of_.data() + size_t{t} * chosen;
    const float* share = shares_ + size_t{t} * chosen;
    for (uint32_t i = 0; i < hidden; ++i) {
      float sum = 0.0F;
      for (uint32_t k = 0; k < chosen; ++k) sum += share[k] * rows_[size_t{row[k]} * hidden + i];
      to[i] += sum;
    }
  });
}

}  // namespace dyn::native

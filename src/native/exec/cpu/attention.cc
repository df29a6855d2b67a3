#include "native/exec/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace dyn::native {
namespace {

constexpr uint32_t kBlockQueries = 32;  // queries of an item that shares its keys and values
constexpr float kNoMax = -std::numeric_limits<float>::infinity();

}  // namespace

KvLayout::KvLayout(const ModelConfig& config, uint32_t tokens_per_block)
    : tokens_per_page(tokens_per_block),
      token_stride((tokens_per_block + kVectorAlign - 1) / kVectorAlign * kVectorAlign),
      key_head(size_t{config.head_dim} * token_stride),
      value_head(size_t{config.head_dim} * tokens_per_block),
      layer(config.num_kv_heads * (key_head + value_head)),
      page(config.num_layers * layer) {}

Attention::Attention(const ModelConfig& config, const KvLayout& layout, const Kernels& kernels, ThreadPool& pool)
    : config_(config),
      head_dim_(config.head_dim),
      heads_(config.num_heads),
      kv_heads_(config.num_kv_heads),
      group_(config.num_heads / config.num_kv_heads),
      qkv_size_(config.qkv_size()),
      layout_(layout),
      kernels_(kernels),
      threads_(pool),
      cut_(std::max(1U, kBlockQueries / group_), std::max(1U, kPartTokens / layout.tokens_per_page)),
      scratch_(pool.size()) {
  const size_t queries = size_t{cut_.block_tokens} * group_;
  for (Scratch& scratch : scratch_) {
    scratch.q.resize(queries * head_dim_);
    scratch.scores.resize(queries * layout.token_stride);
    scratch.visible.resize(queries);
    scratch.hidden.resize(queries);
    for (State* state : {&scratch.part, &scratch.total}) {
      state->sum.resize(queries * head_dim_);
      state->max.resize(queries);
      state->weight.resize(queries);
    }
  }
}

void Attention::plan(const StepPlan& step) {
  cut_.plan(step);
  const size_t room = size_t{cut_.partials} * heads_ * (head_dim_ + 2);
  if (partials_.size() < room) partials_.resize(room);
}

void Attention::write(const State& state, uint32_t query, float* out) const {
  const float scale = 1.0F / state.weight[query];
  const float* sum = state.sum.data() + size_t{query} * head_dim_;
  for (uint32_t d = 0; d < head_dim_; ++d) out[d] = sum[d] * scale;
}

void Attention::run_item(const StepPlan& step, const Item& item, uint32_t layer, uint32_t head, const float* qkv,
                         const float* pool, float* out, Scratch& scratch) {
  const uint32_t queries = item.tokens * group_;
  const uint32_t row_end = step.row_offsets[item.row + 1];
  const auto window = static_cast<int32_t>(config_.layer(layer).window);
  for (uint32_t t = 0; t < item.tokens; ++t) {
    const float* q = qkv + (item.token + t) * qkv_size_ + size_t{head} * group_ * head_dim_;
    std::memcpy(scratch.q.data() + size_t{t} * group_ * head_dim_, q, size_t{group_} * head_dim_ * sizeof(float));
    // The last token of the row sees the whole context, each one before it one token less.
    const int32_t visible = step.context_lens[item.row] - static_cast<int32_t>(row_end - 1 - item.token - t);
    std::fill_n(scratch.visible.data() + size_t{t} * group_, group_, visible);
    std::fill_n(scratch.hidden.data() + size_t{t} * group_, group_, window == 0 ? 0 : std::max(0, visible - window));
  }
  std::fill_n(scratch.total.sum.data(), size_t{queries} * head_dim_, 0.0F);
  std::fill_n(scratch.total.max.data(), queries, kNoMax);
  std::fill_n(scratch.total.weight.data(), queries, 0.0F);

  const uint32_t pages = step.page_offsets[item.row + 1] - step.page_offsets[item.row];
  // The first token's window begins first.
  const uint32_t first_page = static_cast<uint32_t>(scratch.hidden[0]) / layout_.tokens_per_page;
  AttentionArgs args{.q = scratch.q.data(),
                     .queries = queries,
                     .head_dim = head_dim_,
                     .scale = config_.score_scale(),
                     .visible = scratch.visible.data(),
                     .hidden = window == 0 ? nullptr : scratch.hidden.data(),
                     .pages = step.pages.data() + step.page_offsets[item.row],
                     .keys = pool + layout_.keys(layer, head),
                     .values = pool + layout_.values(layer, kv_heads_, head),
                     .page_stride = layout_.page,
                     .tokens_per_page = layout_.tokens_per_page,
                     .token_stride = layout_.token_stride,
                     .scores = scratch.scores.data(),
                     .sum = scratch.part.sum.data(),
                     .max = scratch.part.max.data(),
                     .weight = scratch.part.weight.data()};
  for (uint32_t part = item.part_begin; part < item.part_end; ++part) {
    args.page_end = std::min(pages, (part + 1) * cut_.part_pages);
    if (item.partial == AttentionItems::kWhole && args.page_end <= first_page) continue;
    args.page_begin = std::max(part * cut_.part_pages, first_page);
    kernels_.attention(args);
    if (item.partial != AttentionItems::kWhole) break;  // merged later
    for (uint32_t i = 0; i < queries; ++i) {
      merge_softmax(head_dim_, scratch.total.sum.data() + size_t{i} * head_dim_, scratch.total.max[i],
                    scratch.total.weight[i], scratch.part.sum.data() + size_t{i} * head_dim_, scratch.part.max[i],
                    scratch.part.weight[i]);
    }
  }
  if (item.partial != AttentionItems::kWhole) {
    for (uint32_t i = 0; i < queries; ++i) {
      float* to = partials_.data() + (size_t{item.partial} * heads_ + head * group_ + i) * (head_dim_ + 2);
      std::memcpy(to, scratch.part.sum.data() + size_t{i} * head_dim_, head_dim_ * sizeof(float));
      to[head_dim_] = scratch.part.max[i];
      to[head_dim_ + 1] = scratch.part.weight[i];
    }
    return;
  }
  for (uint32_t i = 0; i < queries; ++i) {
    const uint32_t token = item.token + i / group_;
    write(scratch.total, i, out + (size_t{token} * heads_ + head * group_ + i % group_) * head_dim_);
  }
}

void Attention::run(const StepPlan& step, uint32_t layer, const float* qkv, const float* pool, float* out) {
  const auto items = static_cast<uint32_t>(cut_.items.size());
  threads_.run(items * kv_heads_, [&](uint32_t i, unsigned worker) {
    run_item(step, cut_.items[i / kv_heads_], layer, i % kv_heads_, qkv, pool, out, scratch_[worker]);
  });
  if (cut_.splits.empty()) return;
  const auto splits = static_cast<uint32_t>(cut_.splits.size());
  threads_.run(splits * kv_heads_, [&](uint32_t i, unsigned worker) {
    const Split& split = cut_.splits[i / kv_heads_];
    State& total = scratch_[worker].total;
    for (uint32_t head = i % kv_heads_ * group_, last = head + group_; head < last; ++head) {
      std::fill_n(total.sum.data(), head_dim_, 0.0F);
      total.max[0] = kNoMax;
      total.weight[0] = 0.0F;
      for (uint32_t part = 0; part < split.parts; ++part) {
        const float* from = partials_.data() + (size_t{split.partial + part} * heads_ + head) * (head_dim_ + 2);
        merge_softmax(head_dim_, total.sum.data(), total.max[0], total.weight[0], from, from[head_dim_],
                      from[head_dim_ + 1]);
      }
      write(total, 0, out + (size_t{split.token} * heads_ + head) * head_dim_);
    }
  });
}

}  // namespace dyn::native

#include "native/exec/cpu/fast/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace dyn::native {
namespace {

constexpr uint32_t kBlockTokens = 64;  // of the keys a query is scored against at once
constexpr uint32_t kPartTokens = 512;
constexpr float kNoMax = -std::numeric_limits<float>::infinity();

uint32_t pages_of_block(uint32_t tokens_per_page) {
  return std::max(1U, kBlockTokens / tokens_per_page);
}

uint32_t pages_of_part(uint32_t tokens_per_page) {
  const uint32_t block = pages_of_block(tokens_per_page);
  return std::max(1U, kPartTokens / tokens_per_page / block) * block;
}

}  // namespace

FastKvLayout::FastKvLayout(const ModelConfig& config, uint32_t tokens_per_block)
    : tokens_per_page(tokens_per_block),
      token_stride((tokens_per_block + kPanelRows - 1) / kPanelRows * kPanelRows),
      head_dim(config.head_dim),
      key_head(size_t{config.head_dim} * token_stride),
      value_head(size_t{config.head_dim} * ((tokens_per_block + 1) / 2 * 2)),
      layer(config.num_kv_heads * (key_head + value_head)),
      page(config.num_layers * layer) {}

void FastKvLayout::write_key(uint16_t* keys, uint32_t token, const uint16_t* key) const {
  uint16_t* to = keys + size_t{token / kPanelRows} * kPanelRows * head_dim + size_t{token % kPanelRows} * 2;
  for (uint32_t d = 0; d < head_dim; d += 2, to += 2 * kPanelRows) std::memcpy(to, key + d, 2 * sizeof(uint16_t));
}

void FastKvLayout::write_value(uint16_t* values, uint32_t token, const uint16_t* value, bool last) const {
  uint16_t* to = values + size_t{token / 2} * 2 * head_dim + token % 2;
  for (uint32_t d = 0; d < head_dim; ++d) to[size_t{2} * d] = value[d];
  const bool alone = token % 2 == 0 && (last || token + 1 == tokens_per_page);
  if (!alone) return;
  for (uint32_t d = 0; d < head_dim; ++d) to[size_t{2} * d + 1] = 0;
}

FastAttention::FastAttention(const ModelConfig& config, const FastKvLayout& layout, const FastKernels& kernels,
                             ThreadPool& pool)
    : config_(config),
      layout_(layout),
      kernels_(kernels),
      threads_(pool),
      head_dim_(config.head_dim),
      heads_(config.num_heads),
      kv_heads_(config.num_kv_heads),
      group_(config.num_heads / config.num_kv_heads),
      block_pages_(pages_of_block(layout.tokens_per_page)),
      cut_(std::max(1U, FastKernels::kMaxQueries / group_), pages_of_part(layout.tokens_per_page)),
      scratch_(pool.size()) {
  const size_t queries = size_t{cut_.block_tokens} * group_;
  const size_t columns = size_t{block_pages_} * layout.token_stride;
  for (Scratch& scratch : scratch_) {
    scratch.q.resize(queries * head_dim_ * kernels.activation_bytes);
    scratch.probabilities.resize(queries * columns * kernels.activation_bytes);
    scratch.scores.resize(queries * columns);
    scratch.visible.resize(queries);
    scratch.hidden.resize(queries);
    for (State* state : {&scratch.part, &scratch.total}) {
      state->sum.resize(queries * head_dim_);
      state->max.resize(queries);
      state->weight.resize(queries);
    }
  }
}

void FastAttention::plan(const StepPlan& step) {
  cut_.plan(step);
  const size_t room = size_t{cut_.partials} * heads_ * (head_dim_ + 2);
  if (partials_.size() < room) partials_.resize(room);
}

void FastAttention::write(State& state, uint32_t query, std::byte* out) const {
  const float scale = 1.0F / state.weight[query];
  float* sum = state.sum.data() + size_t{query} * head_dim_;
  for (uint32_t d = 0; d < head_dim_; ++d) sum[d] *= scale;
  kernels_.narrow(sum, head_dim_, out);
}

void FastAttention::run_item(const StepPlan& step, const Item& item, uint32_t layer, uint32_t head, const std::byte* q,
                             const uint16_t* pool, std::byte* out, Scratch& scratch) {
  const size_t head_bytes = size_t{head_dim_} * kernels_.activation_bytes;
  const uint32_t queries = item.tokens * group_;
  const uint32_t row_end = step.row_offsets[item.row + 1];
  const auto window = static_cast<int32_t>(config_.layer(layer).window);
  for (uint32_t t = 0; t < item.tokens; ++t) {
    std::memcpy(scratch.q.data() + size_t{t} * group_ * head_bytes,
                q + (size_t{item.token + t} * heads_ + size_t{head} * group_) * head_bytes, group_ * head_bytes);
    // The last token of the row sees the whole context, each one before it one token less.
    const int32_t visible = step.context_lens[item.row] - static_cast<int32_t>(row_end - 1 - item.token - t);
    std::fill_n(scratch.visible.data() + size_t{t} * group_, group_, visible);
    std::fill_n(scratch.hidden.data() + size_t{t} * group_, group_, window == 0 ? 0 : std::max(0, visible - window));
  }
  State& total = scratch.total;
  std::fill_n(total.sum.data(), size_t{queries} * head_dim_, 0.0F);
  std::fill_n(total.max.data(), queries, kNoMax);
  std::fill_n(total.weight.data(), queries, 0.0F);

  const uint32_t pages = step.page_offsets[item.row + 1] - step.page_offsets[item.row];
  // The first token's window begins first; blocks stay where they are.
  const uint32_t first_page = static_cast<uint32_t>(scratch.hidden[0]) / layout_.tokens_per_page;
  const uint32_t first_block = first_page / block_pages_ * block_pages_;
  const bool one_part = item.partial == AttentionItems::kWhole && item.part_end - item.part_begin == 1;
  State& part_state = one_part ? total : scratch.part;  // nothing to merge
  FastAttentionArgs args{.q = scratch.q.data(),
                         .queries = queries,
                         .head_dim = head_dim_,
                         .scale = config_.score_scale(),
                         .visible = scratch.visible.data(),
                         .hidden = window == 0 ? nullptr : scratch.hidden.data(),
                         .pages = step.pages.data() + step.page_offsets[item.row],
                         .block_pages = block_pages_,
                         .keys = pool + layout_.keys(layer, head),
                         .values = pool + layout_.values(layer, kv_heads_, head),
                         .page_stride = layout_.page,
                         .tokens_per_page = layout_.tokens_per_page,
                         .token_stride = layout_.token_stride,
                         .scores = scratch.scores.data(),
                         .probabilities = scratch.probabilities.data(),
                         .sum = part_state.sum.data(),
                         .max = part_state.max.data(),
                         .weight = part_state.weight.data()};
  for (uint32_t part = item.part_begin; part < item.part_end; ++part) {
    args.page_end = std::min(pages, (part + 1) * cut_.part_pages);
    if (item.partial == AttentionItems::kWhole && args.page_end <= first_page) continue;
    args.page_begin = std::max(part * cut_.part_pages, first_block);
    kernels_.attention(args);
    if (item.partial != AttentionItems::kWhole) break;  // merged later
    if (one_part) break;
    for (uint32_t i = 0; i < queries; ++i) {
      merge_softmax(head_dim_, total.sum.data() + size_t{i} * head_dim_, total.max[i], total.weight[i],
                    scratch.part.sum.data() + size_t{i} * head_dim_, scratch.part.max[i], scratch.part.weight[i]);
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
    const size_t token = item.token + i / group_;
    write(total, i, out + (token * heads_ + head * group_ + i % group_) * head_bytes);
  }
}

void FastAttention::run(const StepPlan& step, uint32_t layer, const std::byte* q, const uint16_t* pool,
                        std::byte* out) {
  const auto items = static_cast<uint32_t>(cut_.items.size());
  threads_.run(items * kv_heads_, [&](uint32_t i, unsigned worker) {
    run_item(step, cut_.items[i / kv_heads_], layer, i % kv_heads_, q, pool, out, scratch_[worker]);
  });
  if (cut_.splits.empty()) return;
  const size_t head_bytes = size_t{head_dim_} * kernels_.activation_bytes;
  const auto splits = static_cast<uint32_t>(cut_.splits.size());
  threads_.run(splits * kv_heads_, [&](uint32_t i, unsigned worker) {
    const AttentionItems::Split& split = cut_.splits[i / kv_heads_];
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
      write(total, 0, out + (size_t{split.token} * heads_ + head) * head_bytes);
    }
  });
}

}  // namespace dyn::native

// Attention of a ragged batch over paged KV: cuts the batch into work items, runs the kernel on each, merges partial
// results.
//
//   Attention attention(config, limits, kernels, pool);
//   attention.plan(step);                       // once a step
//   for each layer: attention.run(step, layer, qkv, kv, out);
//
// attention_items.h says how the batch is cut and why a token's result does not depend on that. In a layer with a
// window the pages before the window of an item's first token are not read. Thread rules: the executor's thread.
#pragma once

#include <cstdint>
#include <vector>

#include "native/exec/cpu/attention_items.h"
#include "native/exec/cpu/kernels.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/exec/executor.h"

namespace dyn::native {

// Where keys and values lie in the pool; see cpu_executor.h for the picture. In floats.
struct KvLayout {
  KvLayout(const ModelConfig& config, uint32_t tokens_per_block);

  uint32_t tokens_per_page;
  uint32_t token_stride;  // tokens_per_page rounded up to whole vectors
  size_t key_head;        // one head's keys
  size_t value_head;      // one head's values
  size_t layer;
  size_t page;

  [[nodiscard]] size_t keys(uint32_t layer_index, uint32_t head) const { return layer_index * layer + head * key_head; }
  [[nodiscard]] size_t values(uint32_t layer_index, uint32_t heads, uint32_t head) const {
    return layer_index * layer + heads * key_head + head * value_head;
  }
};

class Attention {
 public:
  static constexpr uint32_t kPartTokens = 512;
  static constexpr uint32_t kMaxGroup = 64;  // query heads of a KV head

  // `config` must outlive it.
  Attention(const ModelConfig& config, const KvLayout& layout, const Kernels& kernels, ThreadPool& pool);

  void plan(const StepPlan& step);

  // qkv: [T][qkv_size], queries normed and rotated; out: [T][q_size].
  void run(const StepPlan& step, uint32_t layer, const float* qkv, const float* pool, float* out);

 private:
  using Item = AttentionItems::Item;
  using Split = AttentionItems::Split;
  // Running softmax sums of up to kMaxGroup queries.
  struct State {
    std::vector<float> sum;  // [queries][head_dim]
    std::vector<float> max;
    std::vector<float> weight;
  };
  struct Scratch {
    std::vector<float> q;
    std::vector<float> scores;
    std::vector<int32_t> visible;
    std::vector<int32_t> hidden;
    State part;
    State total;
  };

  void run_item(const StepPlan& step, const Item& item, uint32_t layer, uint32_t head, const float* qkv,
                const float* pool, float* out, Scratch& scratch);
  void write(const State& state, uint32_t query, float* out) const;

  const ModelConfig& config_;
  uint32_t head_dim_;
  uint32_t heads_;
  uint32_t kv_heads_;
  uint32_t group_;  // query heads of a KV head
  size_t qkv_size_;
  KvLayout layout_;
  const Kernels& kernels_;
  ThreadPool& threads_;

  AttentionItems cut_;
  std::vector<Scratch> scratch_;  // one a worker
  std::vector<float> partials_;   // [partial][head][head_dim + 2]: sum, max, weight
};

}  // namespace dyn::native

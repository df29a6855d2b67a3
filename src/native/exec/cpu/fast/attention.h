// FastAttention: attention of a ragged batch over the fast path's paged BF16 KV cache.
//
//   FastAttention attention(config, layout, kernels, pool);
//   attention.plan(step);                       // once a step
//   for each layer: attention.run(step, layer, q, kv, out);
//
// attention_items.h says how the batch is cut; the blocks of pages that a query's keys are looked at in begin at fixed
// places of the sequence. Thread rules: the executor's thread.
#pragma once

#include <cstdint>
#include <vector>

#include "native/exec/cpu/attention_items.h"
#include "native/exec/cpu/fast/kernels.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/exec/executor.h"
#include "native/model/model_config.h"

namespace dyn::native {

// Where keys and values lie in the pool; fast/kernels.h says how within a head. In BF16 values.
struct FastKvLayout {
  FastKvLayout(const ModelConfig& config, uint32_t tokens_per_block);

  uint32_t tokens_per_page;
  uint32_t token_stride;  // of keys: tokens_per_page rounded up to whole panels
  uint32_t head_dim;
  size_t key_head;    // one head's keys
  size_t value_head;  // one head's values
  size_t layer;
  size_t page;

  [[nodiscard]] uint64_t page_bytes() const { return page * sizeof(uint16_t); }
  [[nodiscard]] size_t keys(uint32_t layer_index, uint32_t head) const { return layer_index * layer + head * key_head; }
  [[nodiscard]] size_t values(uint32_t layer_index, uint32_t heads, uint32_t head) const {
    return layer_index * layer + heads * key_head + head * value_head;
  }
  // One token's key or value of head_dim BF16 values into its head of a page.
  void write_key(uint16_t* keys, uint32_t token, const uint16_t* key) const;
  // `last`: no token after it is written yet, so zeros are its second's place.
  void write_value(uint16_t* values, uint32_t token, const uint16_t* value, bool last) const;
};

class FastAttention {
 public:
  // `config` must outlive it.
  FastAttention(const ModelConfig& config, const FastKvLayout& layout, const FastKernels& kernels, ThreadPool& pool);

  void plan(const StepPlan& step);

  // q: [T][q_size] activations, normed and rotated; out: the same.
  void run(const StepPlan& step, uint32_t layer, const std::byte* q, const uint16_t* pool, std::byte* out);

 private:
  using Item = AttentionItems::Item;
  struct State {             // running softmax sums
    std::vector<float> sum;  // [queries][head_dim]
    std::vector<float> max;
    std::vector<float> weight;
  };
  struct Scratch {
    std::vector<std::byte> q;
    std::vector<std::byte> probabilities;
    std::vector<float> scores;
    std::vector<int32_t> visible;
    std::vector<int32_t> hidden;
    State part;
    State total;
  };

  void run_item(const StepPlan& step, const Item& item, uint32_t layer, uint32_t head, const std::byte* q,
                const uint16_t* pool, std::byte* out, Scratch& scratch);
  // One query's sums, divided by their weight, as activations.
  void write(State& state, uint32_t query, std::byte* out) const;

  const ModelConfig& config_;
  const FastKvLayout layout_;
  const FastKernels& kernels_;
  ThreadPool& threads_;
  uint32_t head_dim_;
  uint32_t heads_;
  uint32_t kv_heads_;
  uint32_t group_;  // query heads of a KV head
  uint32_t block_pages_;
  AttentionItems cut_;
  std::vector<Scratch> scratch_;  // one a worker
  std::vector<float> partials_;   // [partial][head][head_dim + 2]: sum, max, weight
};

}  // namespace dyn::native

// FastLayers: the layers of a model on the CPU's fast path: packed weights, activations as the machine multiplies them
// best, a BF16 KV cache.
//
//   FastLayers layers(config, weights, limits, *fast_kernels_for(isa), *kernels_for(isa), pool);
//   layers.allocate();
//   layers.run(plan, x, cos, sin);             // x: [T][hidden] residual stream, in and out
//   layers.project(normed, rows, logits);      // the LM head
//
// A layer of a decode step is five jobs of the pool: qkv, attention, o, gate-up, down. Norms go with the product that
// reads them (each worker norms for itself while rows are few), bias, rotation and writing to the KV cache with the
// product of a head, the activation with the product of its columns. Thread rules: the executor's thread.
#pragma once

#include <cstdint>
#include <vector>

#include "native/exec/cpu/experts.h"
#include "native/exec/cpu/fast/attention.h"
#include "native/exec/cpu/fast/kernels.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/exec/executor.h"
#include "native/model/weights.h"

namespace dyn::native {

class FastLayers {
 public:
  // All references must outlive it.
  FastLayers(const ModelConfig& config, const Weights& weights, const ExecutorLimits& limits, const FastKernels& fast,
             const Kernels& kernels, ThreadPool& pool);

  Result<void> allocate();

  // Rotary angles: [rope][max_num_tokens][rotary_dim / 2], the local one second.
  void run(const StepPlan& plan, float* x, const float* cos, const float* sin);

  // logits[rows][vocab] of normed[rows][hidden].
  void project(const float* normed, uint32_t rows, float* logits);

  void copy_page(PageId from, PageId to);

  [[nodiscard]] const FastKvLayout& layout() const { return layout_; }

 private:
  // Where a token's keys and values go.
  struct Place {
    size_t page = 0;  // of the pool, in values
    uint32_t token = 0;
    bool last = false;  // of its row
  };
  // What a worker has to itself.
  struct Scratch {
    std::byte* normed = nullptr;  // [kFewTokens][hidden] activations
    float* columns = nullptr;     // [kChunkTokens][columns of an item]
    uint16_t* widened = nullptr;  // see LinearArgs
    uint64_t normed_serial = 0;   // of what `normed` holds
    std::vector<uint16_t> head;   // [head_dim]
  };
  // A range of tokens of a job.
  struct Chunks {
    explicit Chunks(uint32_t tokens);
    uint32_t count;
    uint32_t size;
  };

  void place_tokens(const StepPlan& plan);
  void attend(const StepPlan& plan, uint32_t index);
  void feed_forward(const LayerWeights& layer);
  void norm(Vector weight);
  const std::byte* normed(unsigned worker);
  void finish_head(uint32_t index, uint32_t head, uint32_t token, float* values, Scratch& scratch);
  void multiply(const LinearArgs& args);
  void add_product(const Matrix& weights, Vector bias, const std::byte* from, size_t from_stride, Vector post_norm);

  const ModelConfig& config_;
  const Weights& weights_;
  const ExecutorLimits& limits_;
  const FastKernels& fast_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  const FastKvLayout layout_;
  FastAttention attention_;
  Experts experts_;

  HostArena kv_memory_;
  uint16_t* kv_ = nullptr;
  // T = max_num_tokens.
  HostArena memory_;
  std::byte* normed_ = nullptr;         // [T][hidden] activations
  std::byte* q_ = nullptr;              // [T][q]
  std::byte* attention_out_ = nullptr;  // [T][q]
  std::byte* inner_ = nullptr;          // [T][intermediate]
  std::byte* head_rows_ = nullptr;      // [max_batch_size][hidden] inputs of the LM head
  float* product_ = nullptr;            // [T][hidden] F32: outputs that are normed, inputs of experts
  std::vector<Scratch> scratch_;        // one a worker
  std::vector<Place> places_;           // [T]

  // Of the step at hand.
  uint32_t tokens_ = 0;
  float* x_ = nullptr;
  const float* cos_ = nullptr;
  const float* sin_ = nullptr;
  Vector norm_weight_ = nullptr;
  uint64_t norm_serial_ = 0;
};

}  // namespace dyn::native

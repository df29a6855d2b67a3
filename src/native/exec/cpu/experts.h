// Mixture of experts: routes the tokens of a batch to their experts and multiplies, grouped by expert, so that an
// expert's weights are read once a step.
//
//   Experts experts(config, limits, kernels, pool);
//   experts.allocate();
//   experts.run(layer, normed, tokens, x);   // x += the experts' output
//
// Batch-invariant: an expert's product treats each row alone, and a token's experts are summed in the order of their
// probabilities, so a token's result does not depend on which others are in a group. Of equal probabilities the lower
// expert is chosen first. Thread rules: the executor's thread.
// Source: transformers 4.57, models/qwen3_moe/modeling_qwen3_moe.py (Qwen3MoeSparseMoeBlock).
#pragma once

#include <cstdint>
#include <vector>

#include "native/exec/cpu/fast/kernels.h"
#include "native/exec/cpu/kernels.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/exec/executor.h"

namespace dyn::native {

class Experts {
 public:
  // `config` must outlive it. With `fast` the layers' matrices must be packed, and its products multiply.
  Experts(const ModelConfig& config, const ExecutorLimits& limits, const Kernels& kernels, ThreadPool& pool,
          const FastKernels* fast = nullptr);

  Result<void> allocate();

  // What allocate() takes, but for small lists.
  static uint64_t bytes(const ModelConfig& config, uint64_t tokens);

  // normed, x: [tokens][hidden].
  void run(const LayerWeights& layer, const float* normed, uint32_t tokens, float* x);

 private:
  // Rows [begin, end) of the grouped buffers belong to one expert.
  struct Group {
    uint32_t expert;
    uint32_t begin;
    uint32_t end;
  };

  void route(const LayerWeights& layer, const float* normed, uint32_t tokens);
  void choose(uint32_t token);
  void group(uint32_t tokens);
  // `from`: rows_ or inner_; on the fast path always narrowed_.
  void multiply(const LayerWeights& layer, Matrix ExpertWeights::* matrix, const float* from, size_t from_stride,
                float* to, size_t to_stride);
  [[nodiscard]] uint64_t widened_floats() const;
  [[nodiscard]] uint16_t* widened(unsigned worker) const;

  const ModelConfig& config_;
  const ExecutorLimits& limits_;
  const Kernels& kernels_;
  ThreadPool& threads_;
  const FastKernels* fast_;
  const FastKernels* router_;  // of F32 activations: rounded ones would send tokens near a tie to another expert

  // T: max_num_tokens, E: experts, K: experts a token, A: T * K.
  HostArena memory_;
  float* probabilities_ = nullptr;  // [T][E]
  float* shares_ = nullptr;         // [T][K] what an expert's output is multiplied with
  float* rows_ = nullptr;           // [A][hidden] inputs grouped by expert, then their outputs
  float* inner_ = nullptr;          // [A][2 intermediate]; the activation goes into its first half
  // Of the fast path alone: activations, [A] rows of hidden or intermediate size, and see LinearArgs for `widened_`.
  std::byte* narrowed_ = nullptr;
  float* widened_ = nullptr;        // [worker][...]
  std::vector<uint32_t> chosen_;    // [T][K] experts
  std::vector<uint32_t> row_of_;    // [T][K] into rows_
  std::vector<uint32_t> token_of_;  // [A]
  std::vector<uint32_t> next_;      // [E] counts, then next row
  std::vector<Group> groups_;
};

}  // namespace dyn::native

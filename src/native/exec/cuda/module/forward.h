// Forward: the decoder as a sequence of kernel launches, and the activations it needs.
//
//   Forward forward(model, limits, weights, multiprocessors);
//   forward.set_kv(pool, page_bytes);
//   forward.run(step_pointers, step, stream);     // embedding to sampled tokens; may be captured into a graph
//
// A layer is five launches for decode rows (norm + QKV; q/k norm, rotation, KV append and attention; output projection
// + residual; norm + gate-up + activation; down projection + residual) and a few more for prompts. Residual stream,
// logits and norms are F32, inputs of products and KV bfloat16. KV page: for each layer the keys [kv head][token][dim],
// then the values likewise; all layers of a page are one contiguous piece. Ownership: owns activations; weights, pool
// and staged arrays are the caller's. Thread rules: one thread.
#pragma once

#include <vector>

#include "native/exec/cuda/kernels/attention.h"
#include "native/exec/cuda/kernels/experts.h"
#include "native/exec/cuda/kernels/linear.h"
#include "native/exec/cuda/kernels/sample.h"
#include "native/exec/cuda/module/memory.h"
#include "native/exec/executor_abi.h"

namespace dyn::native::cuda {

// The arrays of a StagedStep on the device.
struct StepPointers {
  const uint32_t* token_ids = nullptr;
  const uint32_t* from_sample = nullptr;
  const int32_t* positions = nullptr;
  const int64_t* kv_slots = nullptr;
  const uint8_t* long_tokens = nullptr;
  const uint32_t* row_offsets = nullptr;
  const int32_t* context_lens = nullptr;
  const uint32_t* page_offsets = nullptr;
  const int32_t* sample_tokens = nullptr;
  const SampleRowParams* sample_params = nullptr;
  const uint32_t* mask_tokens = nullptr;
  const uint32_t* bias_tokens = nullptr;
  const float* bias_values = nullptr;
  const int32_t* pages = nullptr;
  const PrefillTile* tiles = nullptr;
  uint32_t num_tiles = 0;
};

// Where the results of `samples` rows lie in the result area, tokens first and always at 0.
struct ResultLayout {
  explicit ResultLayout(uint32_t samples)
      : logprobs(align(samples * sizeof(uint32_t))),
        not_finite(logprobs + align(samples * sizeof(float))),
        top(not_finite + align(samples)),
        end(top + align(samples * kMaxTopLogprobs * sizeof(TopLogprobOut))) {}
  size_t logprobs;
  size_t not_finite;
  size_t top;
  size_t end;

 private:
  static size_t align(size_t bytes) { return (bytes + 15) / 16 * 16; }
};

class Forward {
 public:
  Forward(const ModelSpec& model, const StepLimits& limits, const std::byte* weights, uint32_t multiprocessors,
          cudaStream_t stream);

  // One piece of the page pool's layout: strides of a layer. `pool` must have been cleared.
  void set_kv(std::byte* pool, uint64_t page_bytes);
  [[nodiscard]] uint64_t page_bytes() const;

  void run(const StepPointers& p, const StagedStep& step, cudaStream_t stream);
  // Logits of any tokens of the step run last, into logits(); at most max_batch_size of them.
  void project_tokens(const int32_t* tokens, uint32_t count, cudaStream_t stream);
  void start_counts(const CountStart* starts, uint32_t count, const uint32_t* device_tokens, cudaStream_t stream);

  [[nodiscard]] const float* logits() const { return logits_.data(); }
  [[nodiscard]] std::byte* results() const { return results_.data(); }
  [[nodiscard]] uint32_t group() const { return model_.num_heads / model_.num_kv_heads; }
  [[nodiscard]] uint32_t vocab_size() const { return model_.vocab_size; }

 private:
  // Launches in order; the first of a chain must not overlap what was copied before it.
  struct Chain {
    Launch on;
    Launch next() {
      const Launch now = on;
      on.overlap = true;
      return now;
    }
  };
  struct Rope {
    uint32_t half = 0;
    DeviceMemory<float> frequencies;
    DeviceMemory<float> long_frequencies;
    float factor = 1.0F;
    DeviceMemory<float> angles;  // [T][2][half]
  };

  void attend(const StepPointers& p, const StagedStep& step, uint32_t index, Chain& chain);
  void feed_forward(const StagedStep& step, uint32_t index, Chain& chain);
  void mix_experts(const StagedStep& step, uint32_t index, Chain& chain);
  // A product into the residual stream, normed before where the model does that.
  void project(const Bf16* from, uint32_t from_size, const Bf16* weights, const float* bias, const float* post_norm,
               uint32_t tokens, Chain& chain);
  void linear(const LinearParams& params, Chain& chain);
  [[nodiscard]] KvLayout kv_of(uint32_t layer) const;

  [[nodiscard]] const Bf16* matrix(uint64_t offset) const { return reinterpret_cast<const Bf16*>(weights_ + offset); }
  [[nodiscard]] const float* vector(uint64_t offset) const {
    return offset == kNoTensor ? nullptr : reinterpret_cast<const float*>(weights_ + offset);
  }

  ModelSpec model_;
  std::vector<LayerSpec> layers_;
  StepLimits limits_;
  const std::byte* weights_;
  uint32_t multiprocessors_;
  GatedActivation activation_;
  uint32_t qkv_size_;
  uint32_t q_size_;
  Linear linear_;
  std::vector<Rope> ropes_;

  DeviceMemory<float> x_;         // [T][hidden]
  DeviceMemory<Bf16> qkv_;        // [T][qkv]
  DeviceMemory<Bf16> attention_;  // [T][q]
  DeviceMemory<Bf16> inner_;      // [T][intermediate]
  DeviceMemory<float> branch_;    // [T][hidden] what a post norm takes; or null
  DeviceMemory<Bf16> scratch_;
  DeviceMemory<float> partials_;
  DeviceMemory<uint32_t> arrivals_;
  DeviceMemory<float> logits_;  // [B][vocab]
  DeviceMemory<float> scores_;
  DeviceMemory<uint32_t> list_;
  DeviceMemory<std::byte> pieces_;
  DeviceMemory<uint32_t> counts_;  // [slots][vocab]
  DeviceMemory<std::byte> results_;

  // Of experts; pairs = T * chosen.
  DeviceMemory<const Bf16*> expert_matrices_;  // [layers][2][experts]
  DeviceMemory<Bf16> normed_;                  // [T][hidden]
  DeviceMemory<float> router_logits_;
  DeviceMemory<int32_t> chosen_;
  DeviceMemory<float> shares_;
  DeviceMemory<int32_t> expert_offsets_;
  DeviceMemory<int32_t> pair_of_;
  DeviceMemory<int32_t> row_of_;
  DeviceMemory<Bf16> expert_inner_;  // [pairs][moe intermediate]
  DeviceMemory<float> expert_out_;   // [pairs][hidden]

  std::byte* pool_ = nullptr;
  uint64_t page_bytes_ = 0;
};

}  // namespace dyn::native::cuda

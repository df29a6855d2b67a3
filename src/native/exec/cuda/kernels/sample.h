// Sampling on the device, the same choices as native/sample/sampler.h makes from the same logits.
//
//   launch_sample({.logits = logits, .rows = device_rows, .num_rows = s, .vocab = v, ..., .tokens = tokens}, on);
//
// Two kernels. Prepare (vocab / 4096 x rows blocks): logit bias, penalties, masks, then for each piece of a row its
// maximum, log-sum-exp and whether it is finite; processed scores go to `scores`. Choose (a block a row): greedy merges
// the pieces' maxima (lowest id of equals); otherwise top-k, top-p and the draw are selections by radix over ordered
// score bits with counts and fixed-point probabilities (2^-40), so they are exact in k, ties go to the lowest id, and
// the order in which threads arrive changes nothing. Philox4x32-10 keyed by seed at counter `position`, as on the CPU;
// exponentials are the device's, so a draw within about 1e-7 of a boundary may fall to the neighbour. Bytes: 4 vocab a
// row read once for greedy (about 3 us for one row), some five times from L2 otherwise (about 25 us). See launch.h.
#pragma once

#include "native/exec/cuda/kernels/launch.h"
#include "native/exec/cuda/kernels/sample_params.h"

namespace dyn::native::cuda {

inline constexpr uint32_t kMaxSampleVocab = 1U << 20;
inline constexpr uint32_t kSampleChunk = 4096;  // vocabulary entries of a block of the prepare kernel

struct SampleParams {
  const float* logits = nullptr;  // [..][vocab], not changed
  const SampleRowParams* rows = nullptr;
  const uint32_t* mask_tokens = nullptr;
  const uint32_t* bias_tokens = nullptr;
  const float* bias_values = nullptr;
  uint32_t* counts = nullptr;     // [slots][vocab] 0: not seen, else 1 + how often generated; chosen tokens are counted
  float* scores = nullptr;        // [num_rows][vocab] scratch
  uint32_t* list = nullptr;       // [num_rows][vocab] scratch
  void* pieces = nullptr;         // sample_pieces_bytes(num_rows, vocab)
  uint32_t* tokens = nullptr;     // [num_rows]
  float* logprobs = nullptr;      // [num_rows]
  TopLogprobOut* top = nullptr;   // [num_rows][kMaxTopLogprobs], or null when no row asks for k > 0
  uint8_t* not_finite = nullptr;  // [num_rows] token is 0 then
  uint32_t num_rows = 0;
  uint32_t vocab = 0;
};
cudaError_t launch_sample(const SampleParams& params, const Launch& on);
size_t sample_pieces_bytes(uint32_t rows, uint32_t vocab);

// Log-probabilities of given tokens from raw logits (prompt log-probabilities): row r's is logits[r][next[r]] - lse.
struct PromptLogprobParams {
  const float* logits = nullptr;    // [rows][vocab]
  const uint32_t* next = nullptr;   // [rows]
  const uint32_t* top_k = nullptr;  // [rows] alternatives wanted, <= kMaxTopLogprobs
  float* logprobs = nullptr;        // [rows]
  TopLogprobOut* top = nullptr;     // [rows][kMaxTopLogprobs] or null
  uint32_t* list = nullptr;         // [rows][vocab] scratch, with top
  uint32_t rows = 0;
  uint32_t vocab = 0;
};
cudaError_t launch_prompt_logprobs(const PromptLogprobParams& params, const Launch& on);

// counts[row] of a slot that a sequence enters: cleared, then prompt tokens seen, generated ones counted.
struct CountTokensParams {
  uint32_t* counts = nullptr;  // the slot's row, [vocab]
  const uint32_t* tokens = nullptr;
  uint32_t num_prompt = 0;
  uint32_t num_generated = 0;  // after the prompt in `tokens`
  uint32_t vocab = 0;
};
cudaError_t launch_count_tokens(const CountTokensParams& params, const Launch& on);

}  // namespace dyn::native::cuda

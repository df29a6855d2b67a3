// What the device's sampler is told of a row: plain values that the host packs into a step and kernels read.
//
//   SampleRowParams p{.seed = 7, .position = 0, .temperature = 0.0F};   // greedy
//
// Free of CUDA headers, because the worker packs it. Part of the border between worker and module (executor_abi.h): a
// change makes another build id. The meaning of every member is that of engine::SamplingParams and SampleRow. Plain
// values; no thread rules.
#pragma once

#include <cstdint>

namespace dyn::native::cuda {

inline constexpr uint32_t kMaxTopLogprobs = 20;

// Parameters of one sampling row, in device memory.
struct SampleRowParams {
  uint64_t seed = 0;
  uint64_t position = 0;
  float temperature = 1.0F;  // not above 0: greedy
  uint32_t top_k = 0;        // 0: off
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  int32_t counts_row = -1;  // row of `counts` when the sequence has penalties, else -1
  int32_t logprobs = -1;    // -1: none; 0: of the chosen token; k: also the k best
  uint32_t mask_begin = 0;  // tokens that must not be chosen: mask_tokens[mask_begin, mask_end)
  uint32_t mask_end = 0;
  uint32_t bias_begin = 0;  // added before everything else: bias_tokens, bias_values
  uint32_t bias_end = 0;
  uint32_t logits_row = 0;  // several rows may share logits
};

struct TopLogprobOut {
  uint32_t id;
  float logprob;
};

}  // namespace dyn::native::cuda

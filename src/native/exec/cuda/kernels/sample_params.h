// What the device's sampler is told of a row and what it answers: plain values that the host packs and kernels read.
//
//   SampleParams p{.slot = 3, .flags = kSampleGreedy};
//
// The meaning of every member is that of engine::SamplingParams and SampleRow; the order of operations is that of
// sample/sampler.h. Part of the border between worker and module (executor_abi.h): a change makes another build id.
// Plain values; no thread rules.
#pragma once

#include <cstdint>

namespace dyn::native::cuda {

inline constexpr uint32_t kSampleGreedy = 1;     // flags: the highest score, lowest id of equals; no draw
inline constexpr uint32_t kSamplePenalties = 2;  // the slot's counts are used and kept
inline constexpr uint32_t kSampleLogprob = 4;    // the chosen token's log-probability is wanted
inline constexpr uint32_t kSampleOnHost = 8;     // the host samples this row from its logits; nothing is chosen here

// Alternatives a row that the device samples may ask for; more are sampled on the host.
inline constexpr uint32_t kMaxDeviceTop = 20;

struct SampleParams {
  int32_t slot;  // -1: padding, nothing is done
  uint32_t flags;
  float temperature;
  uint32_t top_k;  // 0: off
  float top_p;
  float min_p;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  uint32_t num_top;  // alternatives to report, best first; at most kMaxDeviceTop
  uint64_t seed;
  uint64_t position;
  uint32_t masked_begin;  // tokens that must not be chosen: [masked_begin, masked_begin + masked_count) of list_tokens
  uint32_t masked_count;
  uint32_t bias_begin;  // added before everything else: tokens of list_tokens, values at the same index of list_values
  uint32_t bias_count;
};

struct SampledRow {
  int32_t token;
  float logprob;
  uint32_t not_finite;
  uint32_t num_top;
  int32_t top_ids[kMaxDeviceTop];
  float top_logprobs[kMaxDeviceTop];
};

}  // namespace dyn::native::cuda

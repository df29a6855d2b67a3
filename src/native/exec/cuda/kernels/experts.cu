#include "native/exec/cuda/kernels/experts.h"

#include <algorithm>

#include "native/exec/cuda/kernels/device.cuh"
#include "native/exec/cuda/kernels/linear_small.h"

namespace dyn::native::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kGroupThreads = 1024;
constexpr uint32_t kMaxExperts = 1024;
constexpr uint32_t kMaxChosen = 32;

// A warp a token; lane l holds experts l, l + 32, ...
__global__ void __launch_bounds__(kThreads) route_kernel(const RouteParams p) {
  constexpr uint32_t kPer = kMaxExperts / kWarp;
  wait_for_predecessor();
  let_successor_start();
  const uint32_t token = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (token >= p.tokens) return;
  const uint32_t lane = threadIdx.x % kWarp;
  const float* logits = p.logits + size_t{token} * p.experts;
  float x[kPer];
  float best = -INFINITY;
#pragma unroll
  for (uint32_t j = 0; j < kPer; ++j) {
    const uint32_t e = lane + kWarp * j;
    x[j] = e < p.experts ? logits[e] : -INFINITY;
    best = fmaxf(best, x[j]);
  }
  best = warp_max(best);
  float sum = 0.0F;
#pragma unroll
  for (uint32_t j = 0; j < kPer; ++j) {
    x[j] = expf(x[j] - best);
    sum += x[j];
  }
  sum = warp_sum(sum);
  constexpr float kTaken = -1.0F;
#pragma unroll
  for (uint32_t j = 0; j < kPer; ++j) x[j] = lane + kWarp * j < p.experts ? x[j] / sum : kTaken;

  float chosen_sum = 0.0F;
  float mine = 0.0F;  // share of the choice with this lane's number
  uint32_t my_expert = 0;
  for (uint32_t c = 0; c < p.chosen; ++c) {
    // Highest probability, lowest expert of equals. NaN loses every comparison but is taken when nothing else is left.
    float value = kTaken;
    uint32_t expert = UINT32_MAX;
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) {
      const uint32_t e = lane + kWarp * j;
      if (x[j] != kTaken && (expert == UINT32_MAX || x[j] > value)) {
        value = x[j];
        expert = e;
      }
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, value, offset);
      const uint32_t other_expert = __shfl_xor_sync(kAllLanes, expert, offset);
      const bool better = other > value || (!(value > other) && other_expert < expert);
      if (better) {
        value = other;
        expert = other_expert;
      }
    }
    // With NaN among them lanes may differ; all follow one.
    value = __shfl_sync(kAllLanes, value, 0);
    expert = __shfl_sync(kAllLanes, expert, 0);
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) {
      if (lane + kWarp * j == expert) x[j] = kTaken;
    }
    if (lane == c) {
      mine = value;
      my_expert = expert;
    }
    chosen_sum += value;
  }
  if (lane < p.chosen) {
    p.chosen_experts[token * p.chosen + lane] = static_cast<int32_t>(my_expert);
    p.shares[token * p.chosen + lane] = p.normalize ? mine / chosen_sum : mine;
  }
}

// One block: counts, offsets, then each expert's pairs in ascending order. A warp an expert at a time, so that the
// order does not depend on which thread is first.
__global__ void __launch_bounds__(kGroupThreads) group_tokens_kernel(const GroupTokensParams p) {
  __shared__ int32_t counts[kMaxExperts];
  __shared__ int32_t warp_sums[kWarp];
  wait_for_predecessor();
  let_successor_start();
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t lane = threadIdx.x % kWarp;
  counts[threadIdx.x] = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < p.pairs; i += kGroupThreads) atomicAdd(&counts[p.chosen_experts[i]], 1);
  __syncthreads();
  const int32_t count = counts[threadIdx.x];
  int32_t before = count;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, before, offset);
    if (lane >= static_cast<uint32_t>(offset)) before += other;
  }
  if (lane == kWarp - 1) warp_sums[warp] = before;
  __syncthreads();
  int32_t warps_before = 0;
  for (uint32_t w = 0; w < warp; ++w) warps_before += warp_sums[w];
  before += warps_before - count;
  counts[threadIdx.x] = before;
  if (threadIdx.x <= p.experts && threadIdx.x < kMaxExperts) p.expert_offsets[threadIdx.x] = before;
  if (threadIdx.x == 0) p.expert_offsets[p.experts] = static_cast<int32_t>(p.pairs);
  __syncthreads();
  for (uint32_t e = warp; e < p.experts; e += kGroupThreads / kWarp) {
    int32_t next = counts[e];
    for (uint32_t start = 0; start < p.pairs; start += kWarp) {
      const uint32_t i = start + lane;
      const bool mine = i < p.pairs && p.chosen_experts[i] == static_cast<int32_t>(e);
      const unsigned ballot = __ballot_sync(kAllLanes, mine);
      if (mine) {
        const int32_t row = next + __popc(ballot & ((1U << lane) - 1));
        p.pair_of[row] = static_cast<int32_t>(i);
        p.row_of[i] = row;
      }
      next += __popc(ballot);
    }
  }
}

__global__ void __launch_bounds__(kThreads) combine_kernel(const CombineExpertsParams p) {
  wait_for_predecessor();
  let_successor_start();
  const uint32_t token = blockIdx.x;
  for (uint32_t i = threadIdx.x * 4; i < p.hidden; i += kThreads * 4) {
    float4 sum{0, 0, 0, 0};
    for (uint32_t c = 0; c < p.chosen; ++c) {
      const float share = p.shares[token * p.chosen + c];
      const auto row = static_cast<size_t>(p.row_of[token * p.chosen + c]);
      const float4 y = *reinterpret_cast<const float4*>(p.y + row * p.hidden + i);
      sum.x += share * y.x;
      sum.y += share * y.y;
      sum.z += share * y.z;
      sum.w += share * y.w;
    }
    auto* to = reinterpret_cast<float4*>(p.x + size_t{token} * p.hidden + i);
    float4 x = *to;
    x.x += sum.x;
    x.y += sum.y;
    x.z += sum.z;
    x.w += sum.w;
    *to = x;
  }
}

}  // namespace

cudaError_t launch_route(const RouteParams& params, const Launch& on) {
  if (params.tokens == 0) return cudaSuccess;
  if (params.experts > kMaxExperts || params.chosen > kMaxChosen || params.chosen > params.experts) {
    return cudaErrorInvalidValue;
  }
  constexpr uint32_t kTokens = kThreads / kWarp;
  return launch_kernel(route_kernel, dim3((params.tokens + kTokens - 1) / kTokens), kThreads, 0, on, params);
}

cudaError_t launch_group_tokens(const GroupTokensParams& params, const Launch& on) {
  if (params.experts > kMaxExperts) return cudaErrorInvalidValue;
  return launch_kernel(group_tokens_kernel, dim3(1), kGroupThreads, 0, on, params);
}

cudaError_t launch_grouped_linear(const GroupedLinearParams& params, const Launch& on) {
  if (params.pairs == 0) return cudaSuccess;
  const bool gated = params.y_bf16 != nullptr;
  SmallLinearParams p;
  p.linear = {.x = params.x,
              // Any value; the rows of experts have pointers of their own.
              .weights = params.x,
              // No expert has more rows than there are tokens.
              .m = params.pairs / params.chosen,
              .n = params.n,
              .k = params.k,
              .output = gated ? LinearOutput::kGatedBf16 : LinearOutput::kF32,
              .activation = params.activation,
              .y = gated ? static_cast<void*>(params.y_bf16) : static_cast<void*>(params.y_f32)};
  p.group_weights = params.weights;
  p.group_offsets = params.expert_offsets;
  p.pair_of = params.gather ? params.pair_of : nullptr;
  p.chosen = params.chosen;
  p.groups = params.experts;
  return launch_linear_small(p, on);
}

cudaError_t launch_combine_experts(const CombineExpertsParams& params, const Launch& on) {
  if (params.tokens == 0) return cudaSuccess;
  return launch_kernel(combine_kernel, dim3(params.tokens), kThreads, 0, on, params);
}

}  // namespace dyn::native::cuda

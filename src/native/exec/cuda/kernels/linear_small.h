// The small path of Linear and the grouped products of experts: weights stream from memory straight into the registers of
// the tensor cores.
//
//   launch_linear_small(params, sms, on);
//
// A block of 8 warps computes tiles of 8 kTilesN rows of weights for up to 16 kTilesM rows of input; its warps split k in
// pieces of 64. One 16-byte load a thread brings 8 consecutive weights of a row; which k goes to which slot of the tensor
// core's fragment does not matter as long as weights and input agree, so no shared memory and no shuffle lies between
// memory and mma. A thread keeps kLoads 16-byte loads in flight (64 KB a block), across tiles, and issues the first ones
// before it waits for the kernel before. Partial sums meet in shared memory every few tiles.
//
// Norm: the input is multiplied with the norm's weight and rounded once; 1 / rms is a factor of the result.
// Order of summation of a result: k ascending within a warp, then warps ascending; it depends on k alone.
#pragma once

#include "native/exec/cuda/kernels/linear.h"

namespace dyn::native::cuda {

struct SmallLinearParams {
  LinearParams linear;
  uint32_t sms = 132;
  uint32_t blocks_per_sm = 1;
  // Of experts; null otherwise.
  const Bf16* const* group_weights = nullptr;
  const int32_t* group_offsets = nullptr;
  const int32_t* pair_of = nullptr;  // input row of grouped row r is pair_of[r] / chosen; null: r
  uint32_t chosen = 1;
  uint32_t groups = 1;
};

inline constexpr uint32_t kMaxSmallRows = 32;

// m at most kMaxSmallRows (of any size with groups).
cudaError_t launch_linear_small(const SmallLinearParams& params, const Launch& on);

}  // namespace dyn::native::cuda

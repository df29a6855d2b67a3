// The small path of Linear and the grouped products of experts: weights stream from memory straight into the registers
// of the tensor cores.
//
//   launch_linear_small(params, sms, on);
//
// A block of 8 warps computes tiles of 8 kTilesN rows of weights for up to 16 kTilesM rows of input; its warps split k
// in pieces of 64. Each warp has a ring in shared memory of its own, 80 KB a block in all, that cp.async fills ahead of
// time, across tiles and first of all before the wait for the kernel before: when that one ends the weights are there.
// (Registers as a ring are slower: a warp has only six scoreboards to wait for loads with. Bulk copies of rows are,
// too: a thread issues one in some forty cycles.) One 16-byte load a lane brings 8 consecutive weights of a row from
// the ring; which k goes to which slot of the tensor core's fragment does not matter as long as weights and input
// agree, so there is nothing to shuffle. Partial sums of the warps meet in shared memory every few tiles. Two blocks
// fit on a multiprocessor for small inputs, so that the next kernel's ring fills while this kernel ends.
//
// Norm: the input is multiplied with the norm's weight and rounded once; 1 / rms is a factor of the result.
// Order of summation of a result: k ascending within a warp, then warps ascending; it depends on k alone.
#pragma once

#include "native/exec/cuda/kernels/linear.h"

namespace dyn::native::cuda {

struct SmallLinearParams {
  LinearParams linear;
  uint32_t sms = 132;
  // Of experts; null otherwise.
  const Bf16* const* group_weights = nullptr;
  const int32_t* group_offsets = nullptr;
  const int32_t* pair_of = nullptr;  // input row of grouped row r is pair_of[r] / chosen; null: r
  uint32_t chosen = 1;
  uint32_t groups = 1;
};

inline constexpr uint32_t kMaxSmallRows = 32;

// m at most kMaxSmallRows (of any size with groups). cudaErrorNotSupported when the input does not fit.
cudaError_t launch_linear_small(const SmallLinearParams& params, const Launch& on);
// Whether the input fits into shared memory.
bool linear_small_fits(const SmallLinearParams& params);

}  // namespace dyn::native::cuda

// The suites of cuda_kernels_check, one a group of kernels; each prints a line a case and counts failures().
#pragma once

#include "native/exec/cuda/kernels/check_support.cuh"

namespace dyn::native::cuda {

void check_elementwise();
void check_linear();
void check_decode_attention();
void check_prefill_attention();
void check_experts();
void check_sample();

}  // namespace dyn::native::cuda

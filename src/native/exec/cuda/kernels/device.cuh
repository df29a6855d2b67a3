// What the kernels share: launching, dependent launch, loads, conversions, tensor-core instructions, reductions.
//
//   return launch_kernel(my_kernel, grid, block, shared_bytes, on, params);
//
// Included by .cu files only. Source of fragment layouts: PTX ISA 9.0, "Matrix Fragments for mma.m16n8k16".
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "native/exec/cuda/kernels/launch.h"

namespace dyn::native::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFF'FFFFU;
inline constexpr float kLog2e = 1.4426950408889634F;
// Stands for minus infinity where a difference of two of them must not be NaN.
inline constexpr float kLowest = -1e30F;

template <class Params>
cudaError_t launch_kernel(void (*kernel)(Params), dim3 grid, unsigned block, size_t shared_bytes, const Launch& on,
                          const Params& params) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(block);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = on.stream;
  config.attrs = &attribute;
  config.numAttrs = on.overlap ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

// The next kernel of the stream may start (its own wait still holds it back from our results). Called after the own
// wait, so that at most two kernels share the machine.
__device__ __forceinline__ void let_successor_start() {
  asm volatile("griddepcontrol.launch_dependents;");
}

// Everything earlier kernels wrote is visible after this. Every block of every kernel calls it, so that the end of a
// kernel implies the end of all before it.
__device__ __forceinline__ void wait_for_predecessor() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Data read once: keeps out of L1.
__device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ float bf16_to_float(Bf16 x) {
  return __uint_as_float(uint32_t{x} << 16);
}
__device__ __forceinline__ Bf16 float_to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ __forceinline__ float low_bf16(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_bf16(uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF'0000U);
}
// `low` goes to the lower address.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// d += a b, one tile of 16 x 8 over 16. Lane = 4 g + t holds a0 = A[g][2t..], a1 = A[g + 8][2t..], a2 = A[g][2t + 8..],
// a3 = A[g + 8][2t + 8..], b0 = B[2t..][g], b1 = B[2t + 8..][g], d0, d1 = D[g][2t..], d2, d3 = D[g + 8][2t..].
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// Sum over the block, the same bits in every thread; `scratch` holds 32 floats and may be reused after the next
// barrier.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  const unsigned warps = (blockDim.x + kWarp - 1) / kWarp;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  const unsigned lane = threadIdx.x % kWarp;
  return warp_sum(lane < warps ? scratch[lane] : 0.0F);
}

__device__ __forceinline__ float silu(float x) {
  return x / (1.0F + __expf(-x));
}
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kSqrt2OverPi = 0.7978845608028654F;
  return 0.5F * x * (1.0F + tanhf(kSqrt2OverPi * (x + 0.044715F * x * x * x)));
}

}  // namespace dyn::native::cuda

#include <cuda_runtime.h>

#include "native/exec/cuda/kernels/read_probe.h"

namespace dyn::native::cuda {
namespace {

constexpr uint32_t kThreads = 512;
constexpr uint32_t kLoads = 8;

__device__ uint4 load(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__global__ void __launch_bounds__(kThreads) read_probe(const uint4* buffer, uint64_t count, float* sink) {
  const uint64_t tile = uint64_t{kThreads} * kLoads;
  uint32_t sum = 0;
  for (uint64_t base = blockIdx.x * tile; base + tile <= count; base += gridDim.x * tile) {
    uint4 values[kLoads];
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) values[i] = load(buffer + base + i * kThreads + threadIdx.x);
#pragma unroll
    for (uint32_t i = 0; i < kLoads; ++i) sum += values[i].x ^ values[i].y ^ values[i].z ^ values[i].w;
  }
  if (sum == 0x9E37'79B9U) *sink = static_cast<float>(sum);  // hardly ever
}

}  // namespace

cudaError_t launch_read_probe(const void* buffer, uint64_t bytes, float* sink, cudaStream_t stream) {
  int device = 0;
  int sms = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
      error != cudaSuccess)
    return error;
  read_probe<<<static_cast<uint32_t>(sms) * 4, kThreads, 0, stream>>>(static_cast<const uint4*>(buffer), bytes / 16,
                                                                      sink);
  return cudaGetLastError();
}

}  // namespace dyn::native::cuda

// Describes a bf16 tensor in device memory to the copy engine.
//
//   CUtensorMap map;
//   if (cudaError_t e = describe_tensor(map, weights, {64, rows, k / 64}, {row_bytes, 128}, {64, 8, 8}); ...)
//
// Sizes and box are in elements, innermost first; strides in bytes, of all dimensions but the innermost (multiples of
// 16). The innermost box size is 64 elements: boxes lie in shared memory as lines of 128 bytes whose 16-byte chunks are
// swizzled with the line's number modulo 8. Elements outside of the tensor read as zeros. The driver's function is
// looked up at the first call. Ownership: none. Thread rules: any thread.
#pragma once

#include <cuda.h>
#include <driver_types.h>

#include <array>
#include <cstdint>

#include "native/exec/cuda/kernels/launch.h"

namespace dyn::native::cuda {

template <uint32_t kRank>
struct TensorShape {
  std::array<uint64_t, kRank> sizes;
  std::array<uint64_t, kRank - 1> strides;
  std::array<uint32_t, kRank> box;
};

cudaError_t describe_tensor(CUtensorMap& map, const Bf16* data, uint32_t rank, const uint64_t* sizes,
                            const uint64_t* strides, const uint32_t* box);

template <uint32_t kRank>
cudaError_t describe_tensor(CUtensorMap& map, const Bf16* data, const TensorShape<kRank>& shape) {
  return describe_tensor(map, data, kRank, shape.sizes.data(), shape.strides.data(), shape.box.data());
}

}  // namespace dyn::native::cuda

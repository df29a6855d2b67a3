#include "native/exec/cuda/kernels/tensor_map.h"

#include <cuda_runtime.h>

namespace dyn::native::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encode_function() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  constexpr unsigned kVersion = 12000;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kVersion, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
}

}  // namespace

cudaError_t describe_tensor(CUtensorMap& map, const Bf16* data, uint32_t rank, const uint64_t* sizes,
                            const uint64_t* strides, const uint32_t* box) {
  static const Encode encode = encode_function();
  if (encode == nullptr) return cudaErrorNotSupported;
  constexpr cuuint32_t kSteps[] = {1, 1, 1, 1, 1};
  const CUresult result = encode(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<Bf16*>(data), reinterpret_cast<const cuuint64_t*>(sizes),
      reinterpret_cast<const cuuint64_t*>(strides), box, kSteps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace dyn::native::cuda

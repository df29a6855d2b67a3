#include "native/exec/cuda/kernels/decode_attention_impl.cuh"

namespace dyn::native::cuda {

template cudaError_t launch_decode_attention_dim<80>(const DecodeAttentionParams&, const Launch&);

}  // namespace dyn::native::cuda

#include "native/exec/cuda/kernels/prefill_attention_impl.cuh"

namespace dyn::native::cuda {

template cudaError_t launch_prefill_attention_dim<80>(const PrefillAttentionParams&, const Launch&);

}  // namespace dyn::native::cuda

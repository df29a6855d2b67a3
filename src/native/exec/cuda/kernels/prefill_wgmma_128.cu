#include "native/exec/cuda/kernels/prefill_attention_wgmma.cuh"

namespace dyn::native::cuda {

template cudaError_t launch_prefill_attention_wgmma<128>(const PrefillAttentionParams&, const Launch&);

}  // namespace dyn::native::cuda

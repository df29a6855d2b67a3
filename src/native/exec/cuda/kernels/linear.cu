#include "native/exec/cuda/kernels/linear.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <unordered_map>
#include <vector>

#include "native/exec/cuda/kernels/device.cuh"
#include "native/exec/cuda/kernels/linear_small.h"

namespace dyn::native::cuda {
namespace {

constexpr size_t kWorkspaceBytes = 32ULL << 20;
constexpr int kCandidates = 12;
// Few rows: the norm is cheaper in every block again than as a kernel of its own.
constexpr uint32_t kMaxFusedNormRows = 16;
// From here on cuBLASLt is faster: measured on an H200 for the layers of Qwen3-0.6B and 8B at 8 and 16 rows.
constexpr uint32_t kMaxRowsOfSmallPath = 8;
constexpr size_t kMaxFusedNormBytes = 96 * 1024;

cudaError_t from_cublas(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return cudaSuccess;
    case CUBLAS_STATUS_ALLOC_FAILED:
      return cudaErrorMemoryAllocation;
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return cudaErrorNotSupported;
    default:
      return cudaErrorUnknown;
  }
}

__global__ void add_bias_kernel(const LinearParams p) {
  wait_for_predecessor();
  const size_t at = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= size_t{p.m} * p.n) return;
  const float bias = p.bias[at % p.n];
  const size_t to = at / p.n * p.y_stride + at % p.n;
  if (p.output == LinearOutput::kBf16) {
    auto* y = static_cast<Bf16*>(p.y) + to;
    *y = float_to_bf16(bf16_to_float(*y) + bias);
  } else {
    static_cast<float*>(p.y)[to] += bias;
  }
}

// Everything that a choice of algorithm depends on.
struct ShapeKey {
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t y_stride;
  uint32_t x_stride;
  LinearOutput output;
  bool operator==(const ShapeKey&) const = default;
};
struct ShapeHash {
  size_t operator()(const ShapeKey& key) const {
    size_t h = 0;
    for (const uint32_t v : {key.m, key.n, key.k, key.y_stride, key.x_stride, static_cast<uint32_t>(key.output)}) {
      h = (h ^ v) * 0x9E37'79B9'7F4A'7C15ULL;
      h ^= h >> 29;
    }
    return h;
  }
};

// Descriptors of one product. cuBLASLt is column-major: y^T [n x m] = W [n x k] x^T [k x m].
class Product {
 public:
  Product() = default;
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product() {
    for (cublasLtMatrixLayout_t layout : {a_, b_, d_}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (desc_ != nullptr) cublasLtMatmulDescDestroy(desc_);
  }
  cublasStatus_t init(const LinearParams& p) {
    const bool is_float = p.output == LinearOutput::kF32 || p.output == LinearOutput::kAddF32;
    beta_ = p.output == LinearOutput::kAddF32 ? 1.0F : 0.0F;
    cublasStatus_t s = cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    if (s == CUBLAS_STATUS_SUCCESS) {
      s = cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed));
    }
    if (s == CUBLAS_STATUS_SUCCESS) {
      s = cublasLtMatrixLayoutCreate(&a_, CUDA_R_16BF, p.k, p.n, static_cast<int64_t>(p.k));
    }
    if (s == CUBLAS_STATUS_SUCCESS) {
      s = cublasLtMatrixLayoutCreate(&b_, CUDA_R_16BF, p.k, p.m, static_cast<int64_t>(p.x_stride));
    }
    if (s == CUBLAS_STATUS_SUCCESS) {
      s = cublasLtMatrixLayoutCreate(&d_, is_float ? CUDA_R_32F : CUDA_R_16BF, p.n, p.m,
                                     static_cast<int64_t>(p.y_stride));
    }
    return s;
  }
  cublasStatus_t candidates(cublasLtHandle_t handle, int wanted,
                            std::array<cublasLtMatmulHeuristicResult_t, kCandidates>& results, int& found) {
    cublasLtMatmulPreference_t preference = nullptr;
    cublasStatus_t s = cublasLtMatmulPreferenceCreate(&preference);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    s = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                                             sizeof(kWorkspaceBytes));
    if (s == CUBLAS_STATUS_SUCCESS) {
      s = cublasLtMatmulAlgoGetHeuristic(handle, desc_, a_, b_, d_, d_, preference, wanted, results.data(), &found);
    }
    cublasLtMatmulPreferenceDestroy(preference);
    if (s == CUBLAS_STATUS_SUCCESS && found == 0) s = CUBLAS_STATUS_NOT_SUPPORTED;
    return s;
  }
  cublasStatus_t run(cublasLtHandle_t handle, const LinearParams& p, const cublasLtMatmulAlgo_t& algo, void* workspace,
                     cudaStream_t stream) {
    const float one = 1.0F;
    return cublasLtMatmul(handle, desc_, &one, p.weights, a_, p.x, b_, &beta_, p.y, d_, p.y, d_, &algo, workspace,
                          kWorkspaceBytes, stream);
  }

 private:
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr;
  cublasLtMatrixLayout_t b_ = nullptr;
  cublasLtMatrixLayout_t d_ = nullptr;
  float beta_ = 0.0F;
};

void fill_strides(LinearParams& p) {
  if (p.x_stride == 0) p.x_stride = p.k;
  if (p.y_stride == 0) p.y_stride = p.output == LinearOutput::kGatedBf16 ? p.n / 2 : p.n;
}

}  // namespace

struct Linear::Impl {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  bool fixed_algorithm = true;
  uint32_t sms = 0;
  std::unordered_map<ShapeKey, cublasLtMatmulAlgo_t, ShapeHash> algorithms;

  ~Impl() {
    if (handle != nullptr) cublasLtDestroy(handle);
    if (workspace != nullptr) cudaFree(workspace);
  }

  static ShapeKey key_of(const LinearParams& p) {
    return {.m = p.m,
            .n = p.n,
            .k = p.k,
            .y_stride = static_cast<uint32_t>(p.y_stride),
            .x_stride = static_cast<uint32_t>(p.x_stride),
            .output = p.output};
  }

  // bf16 input, no gate.
  cudaError_t multiply(const LinearParams& p, const Launch& on) {
    Product product;
    cublasStatus_t s = product.init(p);
    if (s != CUBLAS_STATUS_SUCCESS) return from_cublas(s);
    auto at = algorithms.find(key_of(p));
    if (at == algorithms.end()) {
      std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results{};
      int found = 0;
      s = product.candidates(handle, 1, results, found);
      if (s != CUBLAS_STATUS_SUCCESS) return from_cublas(s);
      at = algorithms.emplace(key_of(p), results[0].algo).first;
    }
    s = product.run(handle, p, at->second, workspace, on.stream);
    if (s != CUBLAS_STATUS_SUCCESS) return from_cublas(s);
    if (p.bias == nullptr) return cudaSuccess;
    const size_t items = size_t{p.m} * p.n;
    return launch_kernel(add_bias_kernel, dim3(static_cast<unsigned>((items + 255) / 256)), 256, 0,
                         {.stream = on.stream, .overlap = false}, p);
  }

  cudaError_t tune(const LinearParams& p, const Launch& on) {
    Product product;
    std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results{};
    int found = 0;
    cublasStatus_t s = product.init(p);
    if (s == CUBLAS_STATUS_SUCCESS) s = product.candidates(handle, kCandidates, results, found);
    if (s != CUBLAS_STATUS_SUCCESS) return from_cublas(s);
    cudaEvent_t start = nullptr;
    cudaEvent_t stop = nullptr;
    cudaError_t error = cudaEventCreate(&start);
    if (error == cudaSuccess) error = cudaEventCreate(&stop);
    float best = 0.0F;
    constexpr int kRepeats = 4;
    for (int i = 0; i < found && error == cudaSuccess; ++i) {
      if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
      if (product.run(handle, p, results[i].algo, workspace, on.stream) != CUBLAS_STATUS_SUCCESS) continue;
      cudaEventRecord(start, on.stream);
      for (int j = 0; j < kRepeats; ++j) product.run(handle, p, results[i].algo, workspace, on.stream);
      cudaEventRecord(stop, on.stream);
      error = cudaEventSynchronize(stop);
      float ms = 0.0F;
      if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, start, stop);
      if (error == cudaSuccess && (best == 0.0F || ms < best)) {
        best = ms;
        algorithms.insert_or_assign(key_of(p), results[i].algo);
      }
    }
    if (start != nullptr) cudaEventDestroy(start);
    if (stop != nullptr) cudaEventDestroy(stop);
    return error;
  }

  // The norm as a kernel of its own, where it is not fused; the input is bf16 afterwards.
  cudaError_t norm_first(LinearParams& p, const Launch& on) const {
    const cudaError_t error = launch_rms_norm({.x = p.x_f32,
                                               .input_rows = p.input_rows,
                                               .weight = p.norm_weight,
                                               .y = p.scratch,
                                               .rows = p.m,
                                               .size = p.k,
                                               .eps = p.eps},
                                              on);
    p.x = p.scratch;
    p.x_stride = p.k;
    p.x_f32 = nullptr;
    return error;
  }

  cudaError_t large(LinearParams p, const Launch& on, bool tuning) {
    const Launch plain{.stream = on.stream, .overlap = false};
    cudaError_t error = cudaSuccess;
    const size_t normed = p.x_f32 != nullptr ? size_t{p.m} * p.k : 0;
    if (normed != 0) error = norm_first(p, on);
    if (error != cudaSuccess) return error;
    const LinearParams whole = p;
    const bool gated = p.output == LinearOutput::kGatedBf16;
    if (gated) {
      p.y = p.scratch + normed;
      p.y_stride = p.n;
      p.output = LinearOutput::kBf16;
    }
    error = tuning ? tune(p, on) : multiply(p, plain);
    if (error != cudaSuccess || !gated) return error;
    return launch_gated_activation({.gate_up = static_cast<const Bf16*>(p.y),
                                    .y = static_cast<Bf16*>(whole.y),
                                    .rows = p.m,
                                    .size = p.n / 2,
                                    .activation = p.activation},
                                   plain);
  }

  [[nodiscard]] bool fits_small(const LinearParams& p) const {
    if (p.m > kMaxRowsOfSmallPath) return false;
    SmallLinearParams small;
    small.linear = p;
    small.sms = sms;
    return linear_small_fits(small);
  }

  cudaError_t small(LinearParams p, const Launch& on) const {
    if (p.x_f32 != nullptr && (p.m > kMaxFusedNormRows || size_t{p.m} * p.k * sizeof(Bf16) > kMaxFusedNormBytes)) {
      const cudaError_t error = norm_first(p, on);
      if (error != cudaSuccess) return error;
    }
    SmallLinearParams small;
    small.linear = p;
    small.sms = sms;
    return launch_linear_small(small, on);
  }
};

Linear::Linear() : impl_(std::make_unique<Impl>()) {}
Linear::~Linear() = default;

cudaError_t Linear::init(bool fixed_algorithm) {
  impl_->fixed_algorithm = fixed_algorithm;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  int sms = 0;
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  impl_->sms = static_cast<uint32_t>(sms);
  if (error == cudaSuccess) error = cudaMalloc(&impl_->workspace, kWorkspaceBytes);
  if (error == cudaSuccess) error = from_cublas(cublasLtCreate(&impl_->handle));
  return error;
}

cudaError_t Linear::tune(const LinearParams& params, const Launch& on) {
  if (impl_->fixed_algorithm) return cudaSuccess;
  LinearParams p = params;
  fill_strides(p);
  return impl_->large(p, on, true);
}

cudaError_t Linear::run(const LinearParams& params, const Launch& on, Path path) {
  if (params.m == 0) return cudaSuccess;
  LinearParams p = params;
  fill_strides(p);
  if (path == Path::kAuto) path = impl_->fits_small(p) ? Path::kSmall : Path::kLarge;
  return path == Path::kSmall ? impl_->small(p, on) : impl_->large(p, on, false);
}

size_t linear_scratch_elements(uint32_t max_m, uint32_t max_k, uint32_t max_gated_n) {
  return size_t{max_m} * (size_t{max_k} + max_gated_n);
}

}  // namespace dyn::native::cuda

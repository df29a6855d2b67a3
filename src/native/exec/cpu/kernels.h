// Kernels: the arithmetic of the CPU executor, once per instruction set behind one table of functions.
//
//   const Kernels* kernels = best_kernels();
//   kernels->gemm({.weights = &layer.qkv, .x = x, .x_stride = hidden, .m = tokens, .y = qkv, ...}, 0, layer.qkv.rows);
//
// kernels_impl.h holds the code as templates over a vector type; kernels_{portable,avx2,avx512}.cc compile it with the
// flags of one instruction set and export one table each. Every output element is reduced in an order that depends on
// K, head size and page size only: never on m, on the slice of rows or on what else is in a batch. Thread rules:
// functions are pure apart from their outputs; slices of one product may run on different threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/exec/cpu/cpu_executor.h"
#include "native/model/weights.h"

namespace dyn::native {

// All sizes that vectors run along (hidden, intermediate, q_size, head_dim) must be multiples of this.
inline constexpr uint32_t kVectorAlign = 16;

// y[i][n] = dot(x[i], weights[n]) + bias[n], or added to y.
struct GemmArgs {
  const Matrix* weights = nullptr;
  const float* bias = nullptr;
  const float* x = nullptr;
  size_t x_stride = 0;  // floats
  uint32_t m = 0;
  float* y = nullptr;
  size_t y_stride = 0;
  bool add = false;
};

// Attention of some queries that share a KV head over a run of pages, with online softmax. Gives a partial result: for
// each query the sum of exp(s - max) v, that maximum, and the sum of exp(s - max), all over the tokens of these pages.
struct AttentionArgs {
  const float* q = nullptr;  // [queries][head_dim]
  uint32_t queries = 0;
  uint32_t head_dim = 0;
  float scale = 1.0F;
  const int32_t* visible = nullptr;  // [queries] end of the tokens a query sees, counted from the start of the sequence
  const int32_t* hidden = nullptr;   // [queries] tokens before those, out of the query's window; null: none
  const int32_t* pages = nullptr;    // block table of the sequence
  uint32_t page_begin = 0;           // run of pages: indices into `pages`
  uint32_t page_end = 0;
  const float* keys = nullptr;    // of page 0, this layer and head: [head_dim][token_stride]
  const float* values = nullptr;  // of page 0, this layer and head: [tokens_per_page][head_dim]
  size_t page_stride = 0;         // floats from a page to the next
  uint32_t tokens_per_page = 0;
  uint32_t token_stride = 0;  // tokens_per_page, rounded up to kVectorAlign
  float* scores = nullptr;    // scratch [queries][token_stride]
  float* sum = nullptr;       // [queries][head_dim]
  float* max = nullptr;       // [queries]; -inf: no token is visible
  float* weight = nullptr;    // [queries]
};

struct Kernels {
  CpuIsa isa;
  const char* name;
  uint32_t row_tile;  // slices of a product should be multiples of this
  void (*gemm)(const GemmArgs& args, uint32_t row_begin, uint32_t row_end);
  void (*attention)(const AttentionArgs& args);
  void (*rms_norm)(const float* x, const float* weight, float eps, uint32_t size, float* y);
  void (*silu_mul)(const float* gate, const float* up, uint32_t size, float* y);
  void (*gelu_mul)(const float* gate, const float* up, uint32_t size, float* y);  // the tanh approximation
  void (*rotate)(float* head, const float* cos, const float* sin, uint32_t head_dim);
  void (*widen)(const Matrix& from, uint32_t row, float* y);
};

// silu_mul or gelu_mul.
auto gated_activation(const Kernels& kernels, Activation activation) -> decltype(kernels.silu_mul);

// The table of an instruction set; null when this machine or this build lacks it.
const Kernels* kernels_for(CpuIsa isa);

}  // namespace dyn::native

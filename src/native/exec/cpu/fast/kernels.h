// FastKernels: products with packed weights and attention over a BF16 KV cache, once per instruction set behind one
// table of functions; the arithmetic of the CPU executor's fast path.
//
//   const FastKernels* fast = fast_kernels_for(CpuIsa::kBest);
//   std::vector<std::byte> x(tokens * hidden * fast->activation_bytes);
//   fast->rms_norm(residual, weight, eps, hidden, x.data());
//   fast->linear({.weights = &layer.o, .x = x.data(), .x_stride = hidden, .m = tokens, .y = y, .y_stride = hidden}, 0,
//                layer.o.panels());
//
// Activations that products read ("x") are BF16 where the machine multiplies BF16 (vdpbf16ps), else F32; products,
// residuals and softmax are F32 everywhere. fast/kernels_impl.h holds the code as templates; one .cc per instruction
// set compiles it.
//
// Order: an output element is one chain of multiply-adds over the columns, in pairs, from first to last, whatever m,
// the slice of rows or the tile; INT8 weights are exact in the type that is multiplied. Attention goes through blocks
// of pages that begin at fixed places of the sequence. So results do not depend on the composition of a batch. Thread
// rules: functions are pure apart from their outputs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/exec/cpu/cpu_executor.h"
#include "native/exec/cpu/kernels.h"
#include "native/model/matrix.h"

namespace dyn::native {

// y[i][n] = dot(x[i], weights[n]) + bias[n], or added to y.
struct LinearArgs {
  const Matrix* weights = nullptr;  // packed
  const float* bias = nullptr;      // of the weights' row 0
  const std::byte* x = nullptr;     // [m][x_stride] activations
  size_t x_stride = 0;              // elements
  uint32_t m = 0;
  float* y = nullptr;   // [m][y_stride], column 0 belongs to the first row of the first panel
  size_t y_stride = 0;  // floats
  bool add = false;
  // Of INT8 weights, kMaxPanels * 16 * cols values: where panels are widened to BF16 once when m is large; may be null.
  uint16_t* widened = nullptr;
};

// Where one KV head's keys and values lie in a page: keys packed as a matrix of rows = tokens (matrix.h), so
// [tokens / 16][head_dim / 2][16][2]; values [tokens / 2][head_dim][2]: two tokens side by side. BF16. A token without
// its second must have zeros there.
struct FastAttentionArgs {
  const std::byte* q = nullptr;  // [queries][head_dim] activations
  uint32_t queries = 0;          // at most kMaxQueries
  uint32_t head_dim = 0;
  float scale = 1.0F;
  const int32_t* visible = nullptr;  // [queries] end of the tokens a query sees, counted from the start of the sequence
  const int32_t* hidden = nullptr;   // [queries] tokens before those, out of the query's window; null: none
  const int32_t* pages = nullptr;    // block table of the sequence
  uint32_t page_begin = 0;           // run of pages: a multiple of block_pages
  uint32_t page_end = 0;
  uint32_t block_pages = 1;          // pages that are looked at together
  const uint16_t* keys = nullptr;    // of page 0, this layer and head
  const uint16_t* values = nullptr;  // of page 0, this layer and head
  size_t page_stride = 0;            // values from a page to the next
  uint32_t tokens_per_page = 0;
  uint32_t token_stride = 0;           // tokens_per_page, rounded up to kPanelRows
  float* scores = nullptr;             // scratch [queries][block_pages * token_stride]
  std::byte* probabilities = nullptr;  // scratch, the same as activations
  float* sum = nullptr;                // [queries][head_dim] of exp(s - max) v
  float* max = nullptr;                // [queries]; -inf: no token is visible
  float* weight = nullptr;             // [queries] sum of exp(s - max)
};

struct FastKernels {
  static constexpr uint32_t kMaxPanels = 4;  // that `widened` must have room for
  static constexpr uint32_t kMaxQueries = 64;

  CpuIsa isa;
  const char* name;
  uint32_t activation_bytes;  // of an element: 2 (BF16) or 4 (F32)
  void (*linear)(const LinearArgs& args, uint32_t panel_begin, uint32_t panel_end);
  void (*attention)(const FastAttentionArgs& args);
  void (*rms_norm)(const float* x, const float* weight, float eps, uint32_t size, std::byte* y);
  void (*silu_mul)(const float* gate, const float* up, uint32_t size, std::byte* y);
  void (*gelu_mul)(const float* gate, const float* up, uint32_t size, std::byte* y);
  void (*narrow)(const float* x, uint32_t size, std::byte* y);      // to activations
  void (*narrow_bf16)(const float* x, uint32_t size, uint16_t* y);  // rounded to nearest even
};

// The table of an instruction set; null when this machine or this build lacks it.
const FastKernels* fast_kernels_for(CpuIsa isa);

}  // namespace dyn::native

// KvLayout: where keys and values of one layer lie in the page pool.
//
//   KvLayout kv{.keys = pool + layer * layer_elements, .values = keys + kv_heads * 32 * head_dim, ...};
//   key of token p of a row: keys + pages[p / 32] * page_stride + head * head_stride + (p % 32) * head_dim
//
// Recommended page: all layers of a page contiguous, for each layer [K: kv_head][token][head_dim] then [V: the same],
// so that a page is one piece for transfers and copies: page_stride = layers * 2 * kv_heads * tokens * head_dim,
// head_stride = tokens * head_dim. Strides are in elements (bfloat16) and multiples of 8. tokens_per_page is a power of
// two from 16 up. The pool is cleared once at start: attention multiplies masked tokens by zero, so they must be
// finite.
#pragma once

#include "native/exec/cuda/kernels/launch.h"

namespace dyn::native::cuda {

struct KvLayout {
  Bf16* keys = nullptr;    // of page 0, head 0 of this layer
  Bf16* values = nullptr;  // likewise; same strides
  size_t page_stride = 0;
  size_t head_stride = 0;
  uint32_t tokens_per_page = 32;
  uint32_t kv_heads = 0;
};

}  // namespace dyn::native::cuda

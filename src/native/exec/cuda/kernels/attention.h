// Attention over paged KV: one kernel for decode rows, one for chunks of prompts.
//
//   launch_decode_attention({.qkv = qkv, ..., .rows = r, .splits = decode_splits(r, kv_heads, 132, max_context)}, on);
//   std::vector<PrefillTile> tiles = plan_prefill(row_offsets, context_lens, heads / kv_heads);   // to the device
//   launch_prefill_attention({.qkv = qkv, .tiles = device_tiles, .num_tiles = tiles.size(), ...}, on);
//
// Block tables: row r's pages are pages[page_offsets[r] ...]; -1 (no page) may stand where the window has passed.
// Scores are q.k * scale, then soft cap, then softmax over tokens max(0, p - window + 1) .. p of the query's position
// p. Head dimensions 64, 80, 96, 128, 256. See launch.h and kv_layout.h.
#pragma once

#include <span>
#include <vector>

#include "native/exec/cuda/kernels/kv_layout.h"

namespace dyn::native::cuda {

// One query token a row. Fused: norm and rotation of the new q and k, append of k and v to their page, attention with
// split KV, merge of the splits by the block that comes last.
// Bytes: KV of the rows' contexts (or windows) once for every 8 query heads of a KV head. Grid: splits x (kv_heads *
// ceil(group / 8)) x rows, 256 threads, < 40 KB shared memory, one or two blocks an SM. Expected: bytes / (0.85 of read
// bandwidth) + 5 us.
struct DecodeAttentionParams {
  const Bf16* qkv = nullptr;              // [rows][qkv_stride]: q heads, k heads, v heads, as the projection gave them
  size_t qkv_stride = 0;                  // elements
  const float* q_norm = nullptr;          // [head_dim] or null
  const float* k_norm = nullptr;          // [head_dim] or null
  const float* angles = nullptr;          // [T][2][half], see RotaryAnglesParams; row r's token is tokens[r]
  const int32_t* tokens = nullptr;        // [rows] row of qkv, angles and out; null: row r
  const int32_t* rows_of = nullptr;       // [rows] row of context_lens and page_offsets; null: row r
  const int32_t* context_lens = nullptr;  // KV length with the new token; 0: the row is padding, nothing is written
  const int32_t* pages = nullptr;
  const uint32_t* page_offsets = nullptr;
  KvLayout kv;
  Bf16* out = nullptr;           // [..][heads * head_dim]
  float* partials = nullptr;     // decode_workspace_floats() floats
  uint32_t* arrivals = nullptr;  // [rows * kv_heads * ceil(group / 8)] zeros; left as zeros
  uint32_t rows = 0;
  uint32_t heads = 0;
  uint32_t head_dim = 0;
  uint32_t half = 0;    // rotary dimensions / 2
  uint32_t splits = 1;  // blocks a row and head; a grid constant of a graph
  uint32_t window = 0;  // 0: none
  float scale = 1.0F;
  float soft_cap = 0.0F;  // 0: none
  float eps = 1e-6F;
};
cudaError_t launch_decode_attention(const DecodeAttentionParams& params, const Launch& on);

inline constexpr uint32_t kMaxDecodeSplits = 64;
inline constexpr uint32_t kDecodeGroup = 8;  // query heads of a block

// Splits that fill the machine; `max_context` bounds it so that a split has at least 64 tokens.
uint32_t decode_splits(uint32_t rows, uint32_t heads, uint32_t kv_heads, uint32_t sms, uint32_t max_context);
size_t decode_workspace_floats(uint32_t rows, uint32_t heads, uint32_t head_dim, uint32_t splits);

// Rows of any number of query tokens (decode rows too, at some cost). Queries as launch_finish_qkv leaves them, KV of
// all tokens already in the pages. Queries of the heads of a group are packed into one tile, so that KV is read once a
// group. Work: 4 * head_dim * heads FLOP a query and visible token. Grid: tiles x kv_heads, 128 packed queries a tile.
struct PrefillTile {
  int32_t row = 0;    // of context_lens, row_offsets, page_offsets
  int32_t first = 0;  // first packed query (token * group + head in group) of the row
};

struct PrefillAttentionParams {
  const Bf16* qkv = nullptr;  // [T][qkv_stride]
  size_t qkv_stride = 0;
  const uint32_t* row_offsets = nullptr;  // [R + 1] into tokens
  const int32_t* context_lens = nullptr;  // [R]
  const int32_t* pages = nullptr;
  const uint32_t* page_offsets = nullptr;
  const PrefillTile* tiles = nullptr;  // device memory
  KvLayout kv;
  Bf16* out = nullptr;  // [T][heads * head_dim]
  uint32_t num_tiles = 0;
  uint32_t heads = 0;
  uint32_t head_dim = 0;
  uint32_t window = 0;
  float scale = 1.0F;
  float soft_cap = 0.0F;
};
cudaError_t launch_prefill_attention(const PrefillAttentionParams& params, const Launch& on);

inline constexpr uint32_t kPrefillTileRows = 128;
// Tiles of rows [0, R), longest first. `skip[r]`, where given and not 0, leaves row r out (a decode row done
// elsewhere). `tiles` is cleared first; its capacity is reused.
void plan_prefill(std::span<const uint32_t> row_offsets, std::span<const int32_t> context_lens, uint32_t group,
                  std::span<const uint8_t> skip, std::vector<PrefillTile>& tiles);

}  // namespace dyn::native::cuda

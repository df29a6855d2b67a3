#include "native/exec/cuda/kernels/attention.h"

#include <algorithm>

namespace dyn::native::cuda {

template <uint32_t kDim>
cudaError_t launch_decode_attention_dim(const DecodeAttentionParams& params, const Launch& on);
template <uint32_t kDim>
cudaError_t launch_prefill_attention_dim(const PrefillAttentionParams& params, const Launch& on);
template <uint32_t kDim>
cudaError_t launch_prefill_attention_wgmma(const PrefillAttentionParams& params, const Launch& on);

namespace {

bool valid(const KvLayout& kv, uint32_t heads) {
  return kv.kv_heads != 0 && heads % kv.kv_heads == 0 && kv.tokens_per_page >= 16 &&
         (kv.tokens_per_page & (kv.tokens_per_page - 1)) == 0;
}

}  // namespace

cudaError_t launch_decode_attention(const DecodeAttentionParams& params, const Launch& on) {
  if (params.rows == 0) return cudaSuccess;
  if (!valid(params.kv, params.heads) || params.splits == 0 || params.splits > kMaxDecodeSplits) {
    return cudaErrorInvalidValue;
  }
  switch (params.head_dim) {
    case 64:
      return launch_decode_attention_dim<64>(params, on);
    case 80:
      return launch_decode_attention_dim<80>(params, on);
    case 96:
      return launch_decode_attention_dim<96>(params, on);
    case 128:
      return launch_decode_attention_dim<128>(params, on);
    case 256:
      return launch_decode_attention_dim<256>(params, on);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t launch_prefill_attention(const PrefillAttentionParams& params, const Launch& on) {
  if (params.num_tiles == 0) return cudaSuccess;
  if (!valid(params.kv, params.heads)) return cudaErrorInvalidValue;
  // The faster kernel; what it does not do is left to the plain one.
  if (params.soft_cap <= 0.0F && params.kv.tokens_per_page <= 128 && params.kv.page_stride % 8 == 0) {
    if (params.head_dim == 64) return launch_prefill_attention_wgmma<64>(params, on);
    if (params.head_dim == 128) return launch_prefill_attention_wgmma<128>(params, on);
  }
  switch (params.head_dim) {
    case 64:
      return launch_prefill_attention_dim<64>(params, on);
    case 80:
      return launch_prefill_attention_dim<80>(params, on);
    case 96:
      return launch_prefill_attention_dim<96>(params, on);
    case 128:
      return launch_prefill_attention_dim<128>(params, on);
    case 256:
      return launch_prefill_attention_dim<256>(params, on);
    default:
      return cudaErrorInvalidValue;
  }
}

uint32_t decode_splits(uint32_t rows, uint32_t heads, uint32_t kv_heads, uint32_t sms, uint32_t max_context) {
  // Three blocks fit on a multiprocessor; twice as many even out what is left over.
  constexpr uint32_t kResident = 3;
  constexpr uint32_t kMinTokens = 64;
  const uint32_t group_blocks = (heads / kv_heads + kDecodeGroup - 1) / kDecodeGroup;
  const uint32_t blocks = std::max(1U, rows * kv_heads * group_blocks);
  const uint32_t wanted =
      std::max(1U, blocks < sms ? sms * kResident / blocks : (sms * kResident * 2 + blocks / 2) / blocks);
  const uint32_t most = std::max(1U, (max_context + kMinTokens - 1) / kMinTokens);
  return std::min({wanted, most, kMaxDecodeSplits});
}

size_t decode_workspace_floats(uint32_t rows, uint32_t heads, uint32_t head_dim, uint32_t splits) {
  return size_t{rows} * heads * splits * (head_dim + 2);
}

void plan_prefill(std::span<const uint32_t> row_offsets, std::span<const int32_t> context_lens, uint32_t group,
                  std::span<const uint8_t> skip, std::vector<PrefillTile>& tiles) {
  tiles.clear();
  const size_t rows = row_offsets.empty() ? 0 : row_offsets.size() - 1;
  for (size_t r = 0; r < rows; ++r) {
    if (!skip.empty() && skip[r] != 0) continue;
    const uint32_t queries = (row_offsets[r + 1] - row_offsets[r]) * group;
    for (uint32_t first = 0; first < queries; first += kPrefillTileRows) {
      tiles.push_back({.row = static_cast<int32_t>(r), .first = static_cast<int32_t>(first)});
    }
  }
  // Tokens that a tile's last query sees: what the tile costs.
  auto cost = [&](const PrefillTile& tile) {
    const auto row = static_cast<size_t>(tile.row);
    const auto queries = static_cast<int64_t>((row_offsets[row + 1] - row_offsets[row]) * group);
    const int64_t last = std::min<int64_t>(queries, int64_t{tile.first} + kPrefillTileRows);
    return int64_t{context_lens[row]} - (queries - last) / group;
  };
  std::stable_sort(tiles.begin(), tiles.end(),
                   [&](const PrefillTile& a, const PrefillTile& b) { return cost(a) > cost(b); });
}

}  // namespace dyn::native::cuda

#include "native/exec/cuda/kernels/sample.h"

#include "native/exec/cuda/kernels/select.cuh"

namespace dyn::native::cuda {
namespace {

constexpr unsigned kPrepareThreads = 256;
constexpr uint32_t kPer = kSampleChunk / kPrepareThreads;
constexpr float kNothing = -INFINITY;

// Statistics of a chunk of a row.
struct Piece {
  float raw_best;
  float raw_sum;  // of exp(x - raw_best)
  float best;     // of the processed scores
  uint32_t best_id;
  uint32_t bad;  // NaN or +inf among the raw or processed ones
};

__host__ __device__ uint32_t pieces_of(uint32_t vocab) {
  return (vocab + kSampleChunk - 1) / kSampleChunk;
}

__device__ bool changes(const SampleRowParams& r) {
  return r.counts_row >= 0 || r.mask_begin != r.mask_end || r.bias_begin != r.bias_end;
}

__device__ bool is_bad(float x) {
  return !(x < INFINITY);  // negated, so that NaN counts
}

struct Best {
  float value;
  uint32_t id;
};
__device__ Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}
__device__ Best warp_best(Best x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Best other{__shfl_xor_sync(kAllLanes, x.value, offset), __shfl_xor_sync(kAllLanes, x.id, offset)};
    x = better(x, other);
  }
  return x;
}

__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(const __grid_constant__ SampleParams p) {
  constexpr uint32_t kWarps = kPrepareThreads / kWarp;
  __shared__ float chunk[kSampleChunk];
  __shared__ Best warp_bests[kWarps];
  __shared__ float warp_floats[kWarps];
  __shared__ float warp_sums[kWarps];
  wait_for_predecessor();
  let_successor_start();
  const SampleRowParams& r = p.rows[blockIdx.y];
  const uint32_t first = blockIdx.x * kSampleChunk;
  const uint32_t size = min(kSampleChunk, p.vocab - first);
  const float* logits = p.logits + size_t{r.logits_row} * p.vocab + first;
  const uint32_t warp = threadIdx.x / kWarp;

  float x[kPer];
  float raw_best = kNothing;
  bool bad = false;
#pragma unroll
  for (uint32_t j = 0; j < kPer; ++j) {
    const uint32_t i = threadIdx.x + j * kPrepareThreads;
    x[j] = i < size ? __ldcg(logits + i) : kNothing;
    bad |= is_bad(x[j]);
    raw_best = fmaxf(raw_best, x[j]);
  }
  raw_best = warp_max(raw_best);
  if (threadIdx.x % kWarp == 0) warp_floats[warp] = raw_best;
  const bool changed = changes(r);
  if (changed) {
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) chunk[threadIdx.x + j * kPrepareThreads] = x[j];
  }
  __syncthreads();
  for (uint32_t w = 0; w < kWarps; ++w) raw_best = fmaxf(raw_best, warp_floats[w]);
  float sum = 0.0F;
  if (r.logprobs >= 0 && raw_best > kNothing) {
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) sum += expf(x[j] - raw_best);
    sum = warp_sum(sum);
  }
  if (threadIdx.x % kWarp == 0) warp_sums[warp] = sum;

  if (changed) {
    auto inside = [&](uint32_t token) { return token >= first && token - first < size; };
    for (uint32_t i = r.bias_begin + threadIdx.x; i < r.bias_end; i += kPrepareThreads) {
      if (inside(p.bias_tokens[i])) atomicAdd(&chunk[p.bias_tokens[i] - first], p.bias_values[i]);
    }
    __syncthreads();
    if (r.counts_row >= 0) {
      const uint32_t* counts = p.counts + static_cast<size_t>(r.counts_row) * p.vocab + first;
      for (uint32_t i = threadIdx.x; i < size; i += kPrepareThreads) {
        const uint32_t count = counts[i];
        if (count == 0) continue;
        float score = chunk[i];
        score = score > 0 ? score / r.repetition_penalty : score * r.repetition_penalty;
        if (count > 1) score -= r.frequency_penalty * static_cast<float>(count - 1) + r.presence_penalty;
        chunk[i] = score;
      }
      __syncthreads();
    }
    for (uint32_t i = r.mask_begin + threadIdx.x; i < r.mask_end; i += kPrepareThreads) {
      if (inside(p.mask_tokens[i])) chunk[p.mask_tokens[i] - first] = kNothing;
    }
    __syncthreads();
    float* scores = p.scores + size_t{blockIdx.y} * p.vocab + first;
#pragma unroll
    for (uint32_t j = 0; j < kPer; ++j) {
      const uint32_t i = threadIdx.x + j * kPrepareThreads;
      x[j] = chunk[i];
      if (i < size) scores[i] = x[j];
      bad |= is_bad(x[j]);
    }
  }
  Best best{kNothing, UINT32_MAX};
#pragma unroll
  for (uint32_t j = 0; j < kPer; ++j) best = better(best, {x[j], first + threadIdx.x + j * kPrepareThreads});
  best = warp_best(best);
  if (threadIdx.x % kWarp == 0) warp_bests[warp] = best;
  const int any_bad = __syncthreads_or(bad ? 1 : 0);
  if (threadIdx.x != 0) return;
  sum = 0.0F;
  for (uint32_t w = 0; w < kWarps; ++w) {
    best = better(best, warp_bests[w]);
    sum += warp_sums[w];
  }
  static_cast<Piece*>(p.pieces)[size_t{blockIdx.y} * gridDim.x + blockIdx.x] = {
      .raw_best = raw_best, .raw_sum = sum, .best = best.value, .best_id = best.id, .bad = any_bad != 0 ? 1U : 0U};
}

// Philox4x32-10, as in native/sample/sampler.cc.
__device__ double uniform_at(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD251'1F53} * c[0];
    const uint64_t b = uint64_t{0xCD9E'8D57} * c[2];
    const uint32_t c0 = static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0];
    const uint32_t c2 = static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1];
    c[0] = c0;
    c[1] = static_cast<uint32_t>(b);
    c[2] = c2;
    c[3] = static_cast<uint32_t>(a);
    k[0] += 0x9E37'79B9;
    k[1] += 0xBB67'AE85;
  }
  const uint64_t word = (uint64_t{c[0]} << 32) | c[1];
  return static_cast<double>(word >> 11) * 0x1p-53;
}

__device__ uint32_t draw(const SampleRowParams& r, Selection& sel, uint32_t vocab) {
  const bool top_k = r.top_k > 0 && r.top_k < vocab;
  const bool top_p = r.top_p < 1.0F;
  const double u = uniform_at(r.seed, r.position);
  const float min_p = fminf(r.min_p, 1.0F);
  if (!top_k && !top_p) {
    sel.set_min_probability(min_p);
    return sel.find_by_id(u);
  }
  sel.gather(top_k ? r.top_k : 0, fmaxf(r.top_p, 0.0F));
  if (top_k) sel.keep(Weight::kCount, r.top_k);
  if (top_p) {
    // Without top-k the candidates are a head of the list that holds enough; the wish is a share of everything.
    const unsigned long long total = top_k ? sel.total_mass() : sel.gathered_from();
    const double wanted = ceil(static_cast<double>(r.top_p) * static_cast<double>(total));
    sel.keep(Weight::kMass, wanted < 1.0 ? 1ULL : static_cast<unsigned long long>(wanted));
  }
  sel.set_min_probability(min_p);
  return sel.find(Weight::kMass, Selection::target_of(u, sel.total_mass()));
}

// The `k` best of raw logits, best first.
__device__ void write_top(Selection& sel, const float* logits, uint32_t k, uint32_t vocab, double norm,
                          TopLogprobOut* top) {
  k = min(k, min(kMaxTopLogprobs, vocab));
  if (k == 0) return;
  sel.gather(k, 1.0F);
  unsigned long long limit = ~0ULL;
  for (uint32_t i = 0; i < k; ++i) {
    const uint32_t id = sel.next_best(limit);
    if (threadIdx.x == 0) top[i] = {.id = id, .logprob = static_cast<float>(static_cast<double>(logits[id]) - norm)};
  }
}

__global__ void __launch_bounds__(kSelectThreads) choose_kernel(const __grid_constant__ SampleParams p) {
  __shared__ SelectionShared shared;
  __shared__ float raw_best_shared;
  __shared__ double raw_sum_shared;
  __shared__ Best best_shared;
  __shared__ uint32_t bad_shared;
  wait_for_predecessor();
  let_successor_start();
  const SampleRowParams r = p.rows[blockIdx.x];
  const uint32_t pieces = pieces_of(p.vocab);
  const Piece* mine = static_cast<const Piece*>(p.pieces) + size_t{blockIdx.x} * pieces;
  if (threadIdx.x < kWarp) {
    float raw_best = kNothing;
    Best best{kNothing, UINT32_MAX};
    bool bad = false;
    for (uint32_t i = threadIdx.x; i < pieces; i += kWarp) {
      raw_best = fmaxf(raw_best, mine[i].raw_best);
      best = better(best, {mine[i].best, mine[i].best_id});
      bad |= mine[i].bad != 0;
    }
    raw_best = warp_max(raw_best);
    best = warp_best(best);
    bad = __any_sync(kAllLanes, bad) != 0;
    double sum = 0;
    for (uint32_t i = threadIdx.x; i < pieces; i += kWarp) {
      if (mine[i].raw_best > kNothing)
        sum += static_cast<double>(mine[i].raw_sum) * exp(static_cast<double>(mine[i].raw_best) - raw_best);
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    if (threadIdx.x == 0) {
      raw_best_shared = raw_best;
      raw_sum_shared = sum;
      best_shared = best;
      bad_shared = bad || !(best.value > kNothing) ? 1 : 0;
    }
  }
  __syncthreads();
  const float raw_best = raw_best_shared;
  const Best best = best_shared;
  const bool bad = bad_shared != 0;
  const float* logits = p.logits + size_t{r.logits_row} * p.vocab;
  TopLogprobOut* top = p.top != nullptr ? p.top + size_t{blockIdx.x} * kMaxTopLogprobs : nullptr;
  if (bad) {
    if (threadIdx.x == 0) {
      p.tokens[blockIdx.x] = 0;
      p.not_finite[blockIdx.x] = 1;
      if (p.logprobs != nullptr) p.logprobs[blockIdx.x] = 0.0F;
    }
    if (top != nullptr && threadIdx.x < kMaxTopLogprobs) top[threadIdx.x] = {.id = 0, .logprob = 0.0F};
    return;
  }
  const bool greedy = r.top_k == 1 || !(r.temperature > 0.0F);
  uint32_t* list = p.list + size_t{blockIdx.x} * p.vocab;
  uint32_t token = best.id;
  if (!greedy) {
    const float* scores = changes(r) ? p.scores + size_t{blockIdx.x} * p.vocab : logits;
    Selection sel(scores, p.vocab, best.value, 1.0F / r.temperature, list, shared);
    token = draw(r, sel, p.vocab);
  }
  const double norm = static_cast<double>(raw_best) + log(raw_sum_shared);
  if (threadIdx.x == 0) {
    p.tokens[blockIdx.x] = token;
    p.not_finite[blockIdx.x] = 0;
    if (p.logprobs != nullptr) {
      p.logprobs[blockIdx.x] = r.logprobs >= 0 ? static_cast<float>(static_cast<double>(logits[token]) - norm) : 0.0F;
    }
    if (r.counts_row >= 0) {
      uint32_t& count = p.counts[static_cast<size_t>(r.counts_row) * p.vocab + token];
      count = max(count, 1U) + 1;
    }
  }
  if (r.logprobs > 0 && top != nullptr) {
    Selection sel(logits, p.vocab, raw_best, 1.0F, list, shared);
    write_top(sel, logits, static_cast<uint32_t>(r.logprobs), p.vocab, norm, top);
  }
}

__global__ void __launch_bounds__(kSelectThreads) prompt_logprobs_kernel(const PromptLogprobParams p) {
  __shared__ SelectionShared shared;
  __shared__ float scratch[kWarp];
  wait_for_predecessor();
  let_successor_start();
  const float* logits = p.logits + size_t{blockIdx.x} * p.vocab;
  float best = kNothing;
  for (uint32_t i = threadIdx.x; i < p.vocab; i += kSelectThreads) best = fmaxf(best, logits[i]);
  best = warp_max(best);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = best;
  __syncthreads();
  best = warp_max(scratch[threadIdx.x % kWarp]);
  __syncthreads();
  float sum = 0.0F;
  for (uint32_t i = threadIdx.x; i < p.vocab; i += kSelectThreads) sum += expf(logits[i] - best);
  const double norm = static_cast<double>(best) + log(static_cast<double>(block_sum(sum, scratch)));
  if (threadIdx.x == 0) {
    const uint32_t next = p.next[blockIdx.x];
    p.logprobs[blockIdx.x] = next < p.vocab ? static_cast<float>(static_cast<double>(logits[next]) - norm) : kNothing;
  }
  if (p.top == nullptr) return;
  Selection sel(logits, p.vocab, best, 1.0F, p.list + size_t{blockIdx.x} * p.vocab, shared);
  write_top(sel, logits, p.top_k[blockIdx.x], p.vocab, norm, p.top + size_t{blockIdx.x} * kMaxTopLogprobs);
}

__global__ void __launch_bounds__(kSelectThreads) count_tokens_kernel(const CountTokensParams p) {
  wait_for_predecessor();
  let_successor_start();
  for (uint32_t i = threadIdx.x; i < p.vocab; i += kSelectThreads) p.counts[i] = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < p.num_prompt + p.num_generated; i += kSelectThreads) {
    if (p.tokens[i] < p.vocab) atomicMax(&p.counts[p.tokens[i]], 1U);
  }
  __syncthreads();
  for (uint32_t i = p.num_prompt + threadIdx.x; i < p.num_prompt + p.num_generated; i += kSelectThreads) {
    if (p.tokens[i] < p.vocab) atomicAdd(&p.counts[p.tokens[i]], 1U);
  }
}

}  // namespace

size_t sample_pieces_bytes(uint32_t rows, uint32_t vocab) {
  return size_t{rows} * pieces_of(vocab) * sizeof(Piece);
}

cudaError_t launch_sample(const SampleParams& params, const Launch& on) {
  if (params.num_rows == 0) return cudaSuccess;
  if (params.vocab > kMaxSampleVocab) return cudaErrorInvalidValue;
  const cudaError_t error =
      launch_kernel(prepare_kernel, dim3(pieces_of(params.vocab), params.num_rows), kPrepareThreads, 0, on, params);
  if (error != cudaSuccess) return error;
  return launch_kernel(choose_kernel, dim3(params.num_rows), kSelectThreads, 0, on, params);
}

cudaError_t launch_prompt_logprobs(const PromptLogprobParams& params, const Launch& on) {
  if (params.rows == 0) return cudaSuccess;
  if (params.vocab > kMaxSampleVocab) return cudaErrorInvalidValue;
  return launch_kernel(prompt_logprobs_kernel, dim3(params.rows), kSelectThreads, 0, on, params);
}

cudaError_t launch_count_tokens(const CountTokensParams& params, const Launch& on) {
  return launch_kernel(count_tokens_kernel, dim3(1), kSelectThreads, 0, on, params);
}

}  // namespace dyn::native::cuda

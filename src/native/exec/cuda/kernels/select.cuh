// Exact selections over a row of scores by one block of kSelectThreads threads: the k best, a nucleus, a draw.
//
//   Selection sel(values, vocab, best, 1 / temperature, list_memory, shared);
//   sel.gather(k, 1.0F);                          // candidates: a superset of the k best
//   sel.keep(Weight::kCount, k);                  // exactly the k best
//   sel.keep(Weight::kMass, wanted);              // of those the shortest head of the sorted list that weighs enough
//   uint32_t id = sel.find(Weight::kMass, target);
//
// Elements are ordered by (score descending, id ascending): unique 52-bit codes. A selection descends through the
// code's bits, 11 at a time, with a histogram of counts or of probabilities in fixed point, which do not depend on the
// order in which threads add. All functions are called by all threads of the block.
#pragma once

#include "native/exec/cuda/kernels/device.cuh"

namespace dyn::native::cuda {

inline constexpr unsigned kSelectThreads = 1024;

enum class Weight : uint8_t { kCount, kMass };

struct SelectionShared {
  static constexpr uint32_t kBins = 2048;
  unsigned long long weights[kBins];
  uint32_t counts[kBins];
  unsigned long long warp_sums[kWarp];
  unsigned long long remaining;
  uint32_t bin;
  uint32_t size;
  uint32_t id;
};

class Selection {
 public:
  __device__ Selection(const float* values, uint32_t vocab, float best, float inverse_temperature, uint32_t* list,
                       SelectionShared& shared)
      : values_(values), vocab_(vocab), best_(best), inverse_t_(inverse_temperature), list_(list), s_(shared) {}

  __device__ float probability(float value) const { return expf((value - best_) * inverse_t_); }
  // Relative to the best one's 2^40.
  __device__ static unsigned long long mass(float probability) {
    return static_cast<unsigned long long>(probability * 0x1p40F);
  }
  // Elements below this probability (relative to the best one) no longer weigh anything.
  __device__ void set_min_probability(float p) { min_p_ = p; }

  // Candidates: all of the `count` best (0: no such wish), or of the head that weighs `fraction` of all.
  __device__ void gather(uint32_t count, float fraction) {
    clear();
    uint32_t last_count = 0;
    unsigned long long last_mass = 0;
    for (uint32_t i = threadIdx.x; i < vocab_; i += kSelectThreads) {
      const float value = values_[i];
      const uint32_t b = coarse_bin(value);
      const unsigned long long m = count != 0 ? 0 : mass(probability(value));
      if (b == SelectionShared::kBins - 1) {
        ++last_count;
        last_mass += m;
        continue;
      }
      atomicAdd(&s_.counts[b], 1U);
      if (m != 0) atomicAdd(&s_.weights[b], m);
    }
    atomicAdd(&s_.counts[SelectionShared::kBins - 1], last_count);
    if (last_mass != 0) atomicAdd(&s_.weights[SelectionShared::kBins - 1], last_mass);
    __syncthreads();
    unsigned long long target = count;
    if (count != 0) {
      for (uint32_t i = threadIdx.x; i < SelectionShared::kBins; i += kSelectThreads) s_.weights[i] = s_.counts[i];
    } else {
      gathered_from_ = sum_of_weights();
      const auto total = static_cast<double>(gathered_from_);
      target = static_cast<unsigned long long>(static_cast<double>(fraction) * total) + 2;
    }
    __syncthreads();
    const uint32_t cut = find_bin(target, false);
    if (threadIdx.x == 0) s_.size = 0;
    __syncthreads();
    for (uint32_t start = 0; start < vocab_; start += kSelectThreads) {
      const uint32_t i = start + threadIdx.x;
      const bool in = i < vocab_ && coarse_bin(values_[i]) <= cut;
      const unsigned ballot = __ballot_sync(kAllLanes, in);
      uint32_t at = 0;
      const uint32_t lane = threadIdx.x % kWarp;
      if (ballot != 0 && lane == 0) at = atomicAdd(&s_.size, static_cast<uint32_t>(__popc(ballot)));
      at = __shfl_sync(kAllLanes, at, 0);
      if (in) list_[at + __popc(ballot & ((1U << lane) - 1))] = i;
    }
    __syncthreads();
    size_ = s_.size;
    bound_ = 0;
  }

  // Mass of all elements, when gather looked at masses.
  __device__ unsigned long long gathered_from() const { return gathered_from_; }

  // Sum of the candidates' masses.
  __device__ unsigned long long total_mass() {
    unsigned long long sum = 0;
    for (uint32_t i = threadIdx.x; i < size_; i += kSelectThreads) {
      const float value = values_[list_[i]];
      if (code(value, list_[i]) >= bound_) sum += weigh(Weight::kMass, value);
    }
    return block_total(sum);
  }

  // Keeps the shortest head of the sorted candidates whose weight reaches `target`; all when none does.
  __device__ void keep(Weight weight, unsigned long long target) {
    uint32_t shift = 0;
    const unsigned long long prefix = descend(weight, target, shift);
    bound_ = prefix << shift;
  }

  // The candidate at which the weight of the sorted list reaches `target`, which must not exceed the total.
  __device__ uint32_t find(Weight weight, unsigned long long target) {
    uint32_t shift = 0;
    const unsigned long long prefix = descend(weight, target, shift);
    for (uint32_t i = threadIdx.x; i < size_; i += kSelectThreads) {
      const uint32_t id = list_[i];
      const unsigned long long c = code(values_[id], id);
      if (c >= bound_ && c >> shift == prefix && weigh(weight, values_[id]) != 0) s_.id = id;
    }
    __syncthreads();
    const uint32_t id = s_.id;
    __syncthreads();
    return id;
  }

  // The best candidate whose code is below `limit`; its code replaces `limit`.
  __device__ uint32_t next_best(unsigned long long& limit) {
    unsigned long long best = 0;
    for (uint32_t i = threadIdx.x; i < size_; i += kSelectThreads) {
      const unsigned long long c = code(values_[list_[i]], list_[i]);
      if (c < limit && c > best) best = c;
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) best = max(best, __shfl_xor_sync(kAllLanes, best, offset));
    if (threadIdx.x % kWarp == 0) s_.warp_sums[threadIdx.x / kWarp] = best;
    __syncthreads();
    for (unsigned w = 0; w < kSelectThreads / kWarp; ++w) best = max(best, s_.warp_sums[w]);
    __syncthreads();
    limit = best;
    return id_of(best);
  }

  // The element at which the mass in order of ids reaches `u` of the total; no gather needed.
  __device__ uint32_t find_by_id(double u) {
    const uint32_t warp = threadIdx.x / kWarp;
    const uint32_t lane = threadIdx.x % kWarp;
    constexpr uint32_t kWarps = kSelectThreads / kWarp;
    const uint32_t segment = (vocab_ + kWarps - 1) / kWarps;
    unsigned long long sum = 0;
    for (uint32_t i = warp * segment + lane; i < min((warp + 1) * segment, vocab_); i += kWarp) {
      sum += weigh(Weight::kMass, values_[i]);
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    if (lane == 0) s_.warp_sums[warp] = sum;
    __syncthreads();
    unsigned long long total = 0;
    for (uint32_t w = 0; w < kWarps; ++w) total += s_.warp_sums[w];
    unsigned long long left = target_of(u, total);
    uint32_t at = 0;
    while (at + 1 < kWarps && left > s_.warp_sums[at]) left -= s_.warp_sums[at++];
    __syncthreads();
    const uint32_t first = at * segment;
    const uint32_t last = min(first + segment, vocab_);
    const uint32_t per = (segment + kSelectThreads - 1) / kSelectThreads;
    unsigned long long mine = 0;
    const uint32_t begin = first + threadIdx.x * per;
    for (uint32_t i = begin; i < min(begin + per, last); ++i) mine += weigh(Weight::kMass, values_[i]);
    const unsigned long long before = block_scan(mine);
    if (mine != 0 && before < left && left <= before + mine) {
      unsigned long long run = before;
      for (uint32_t i = begin; i < min(begin + per, last); ++i) {
        run += weigh(Weight::kMass, values_[i]);
        if (run >= left) {
          s_.id = i;
          break;
        }
      }
    }
    __syncthreads();
    const uint32_t id = s_.id;
    __syncthreads();
    return id;
  }

  // Where in (0, total] a draw with u in [0, 1) falls.
  __device__ static unsigned long long target_of(double u, unsigned long long total) {
    return min(static_cast<unsigned long long>(u * static_cast<double>(total)) + 1, total);
  }

 private:
  static constexpr uint32_t kIdBits = 20;
  static constexpr uint32_t kCodeBits = 32 + kIdBits;
  static constexpr uint32_t kLevelBits = 11;

  __device__ static unsigned long long code(float value, uint32_t id) {
    const uint32_t bits = __float_as_uint(value == 0.0F ? 0.0F : value);  // -0 equals 0
    const uint32_t key = (bits & 0x8000'0000U) != 0 ? ~bits : bits | 0x8000'0000U;
    return (static_cast<unsigned long long>(key) << kIdBits) | ((1U << kIdBits) - 1 - id);
  }
  __device__ static uint32_t id_of(unsigned long long c) {
    return (1U << kIdBits) - 1 - static_cast<uint32_t>(c & ((1U << kIdBits) - 1));
  }
  // 64 bins a natural unit below the best.
  __device__ uint32_t coarse_bin(float value) const {
    return static_cast<uint32_t>(fminf((best_ - value) * inverse_t_ * 64.0F, SelectionShared::kBins - 1));
  }
  __device__ unsigned long long weigh(Weight weight, float value) const {
    if (weight == Weight::kCount) return 1;
    const float p = probability(value);
    return p < min_p_ ? 0 : mass(p);
  }
  __device__ void clear() {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < SelectionShared::kBins; i += kSelectThreads) {
      s_.weights[i] = 0;
      s_.counts[i] = 0;
    }
    __syncthreads();
  }
  __device__ unsigned long long block_total(unsigned long long x) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
    if (threadIdx.x % kWarp == 0) s_.warp_sums[threadIdx.x / kWarp] = x;
    __syncthreads();
    unsigned long long total = 0;
    for (unsigned w = 0; w < kSelectThreads / kWarp; ++w) total += s_.warp_sums[w];
    __syncthreads();
    return total;
  }
  __device__ unsigned long long sum_of_weights() {
    unsigned long long sum = 0;
    for (uint32_t i = threadIdx.x; i < SelectionShared::kBins; i += kSelectThreads) sum += s_.weights[i];
    return block_total(sum);
  }
  // Sum of the threads before this one.
  __device__ unsigned long long block_scan(unsigned long long x) {
    const uint32_t lane = threadIdx.x % kWarp;
    const uint32_t warp = threadIdx.x / kWarp;
    unsigned long long run = x;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const unsigned long long other = __shfl_up_sync(kAllLanes, run, offset);
      if (lane >= static_cast<uint32_t>(offset)) run += other;
    }
    if (lane == kWarp - 1) s_.warp_sums[warp] = run;
    __syncthreads();
    unsigned long long before = 0;
    for (uint32_t w = 0; w < warp; ++w) before += s_.warp_sums[w];
    __syncthreads();
    return before + run - x;
  }
  // The bin at which the running sum of weights reaches `target`, from bin 0 up or from the last down; what is left of
  // the target in that bin goes to s_.remaining. The end of the walk when the sum never gets there.
  __device__ uint32_t find_bin(unsigned long long target, bool descending) {
    constexpr uint32_t kPer = SelectionShared::kBins / kSelectThreads;
    if (threadIdx.x == 0) {
      s_.bin = UINT32_MAX;
      s_.remaining = 0;
    }
    unsigned long long mine = 0;
    for (uint32_t j = 0; j < kPer; ++j) mine += s_.weights[place(threadIdx.x * kPer + j, descending)];
    unsigned long long run = block_scan(mine);
    if (run < target && target <= run + mine) {
      for (uint32_t j = 0; j < kPer; ++j) {
        const uint32_t b = place(threadIdx.x * kPer + j, descending);
        if (target <= run + s_.weights[b]) {
          s_.bin = b;
          s_.remaining = target - run;
          break;
        }
        run += s_.weights[b];
      }
    }
    __syncthreads();
    return s_.bin == UINT32_MAX ? place(SelectionShared::kBins - 1, descending) : s_.bin;
  }
  __device__ static uint32_t place(uint32_t i, bool descending) {
    return descending ? SelectionShared::kBins - 1 - i : i;
  }

  // Leading bits of the code of the element at which the weight reaches `target`: code >> shift. 0 when none does.
  __device__ unsigned long long descend(Weight weight, unsigned long long target, uint32_t& shift) {
    unsigned long long prefix = 0;
    uint32_t bits_left = kCodeBits;
    while (bits_left > 0) {
      const uint32_t bits = min(kLevelBits, bits_left);
      shift = bits_left - bits;
      clear();
      for (uint32_t i = threadIdx.x; i < size_; i += kSelectThreads) {
        const uint32_t id = list_[i];
        const float value = values_[id];
        const unsigned long long c = code(value, id);
        if (c < bound_ || c >> bits_left != prefix) continue;
        const unsigned long long w = weigh(weight, value);
        if (w == 0) continue;
        const auto b = static_cast<uint32_t>(c >> shift) & ((1U << bits) - 1);
        atomicAdd(&s_.weights[b], w);
        atomicAdd(&s_.counts[b], 1U);
      }
      __syncthreads();
      const uint32_t bin = find_bin(target, true);
      const bool found = s_.bin != UINT32_MAX;
      target = s_.remaining;
      prefix = (prefix << bits) | bin;
      bits_left = shift;
      const bool single = s_.counts[bin] == 1;
      __syncthreads();
      if (!found) {
        shift = 0;
        return 0;
      }
      if (single) break;
    }
    return prefix;
  }

  const float* values_;
  uint32_t vocab_;
  float best_;
  float inverse_t_;
  float min_p_ = 0.0F;
  uint32_t* list_;
  SelectionShared& s_;
  uint32_t size_ = 0;
  unsigned long long gathered_from_ = 0;
  unsigned long long bound_ = 0;
};

}  // namespace dyn::native::cuda

// The kernels as templates over a vector type V; included by one .cc per instruction set, and nowhere else.
//
// V is a Vector<kWidth> of kernels_vector.h with the instruction set's fma() and load_f16(), and the register tiles of
// a product (rows of x times rows of the weights): kGemmRows x kGemmColumns, kFewColumns for two or three rows;
// kHeadVectors of a head are summed at once in attention.
//
// Everything here has internal linkage and calls no inline function of the standard library: a function compiled for
// AVX-512 that the linker merged with its portable twin would end an older machine with SIGILL.
//
// Cost model. One token (m = 1): bound by reading the weights once; the tile of 8 weight rows gives 8 independent
// chains, and the tile after this one is prefetched. Many tokens: bound by FMA; a slice of weights that fits L2 is
// reused by all of x, and a tile of kGemmRows x K activations stays in L1 meanwhile.
#pragma once

#include "native/exec/cpu/kernels.h"
#include "native/exec/cpu/kernels_vector.h"

namespace dyn::native {
namespace {

// What a slice of weights may take, so that it stays in L2 beside a tile of x.
constexpr uint64_t kSliceBytes = 256u << 10;

template <class V>
struct Impl {
  using F = typename V::Float;
  static constexpr uint32_t kWidth = V::kWidth;
  // A dot product runs in one accumulator of kWidth lanes on every path: this is what makes m = 1 and m = 6 agree.

  struct Bf16 {
    using Stored = uint16_t;
    static F load(const Stored* at) { return V::load_bf16(at); }
  };
  struct F16 {
    using Stored = uint16_t;
    static F load(const Stored* at) { return V::load_f16(at); }
  };
  struct F32 {
    using Stored = float;
    static F load(const Stored* at) { return V::load(at); }
  };

  // exp(x) to 2 units in the last place; 0 below -87.3, exp(88) above 88. 2^n times a polynomial on [-ln2/2, ln2/2].
  static F exp(F x) {
    F clamped = x > -87.3F ? x : V::set(-87.3F);
    clamped = clamped < 88.0F ? clamped : V::set(88.0F);
    constexpr float kRound = 0x1.8p23F;  // adding it leaves no fraction bits
    const F n = (clamped * 1.44269504F + kRound) - kRound;
    F r = V::fma(n, V::set(-0.693359375F), clamped);
    r = V::fma(n, V::set(2.12194440e-4F), r);
    F p = V::set(1.9875691500e-4F);
    p = V::fma(p, r, V::set(1.3981999507e-3F));
    p = V::fma(p, r, V::set(8.3334519073e-3F));
    p = V::fma(p, r, V::set(4.1665795894e-2F));
    p = V::fma(p, r, V::set(1.6666665459e-1F));
    p = V::fma(p, r, V::set(5.0000001201e-1F));
    p = V::fma(p * r, r, r) + 1.0F;
    return x > -87.3F ? p * V::power_of_two(n) : V::set(0.0F);
  }

  // --- matrix product

  template <class W, uint32_t kM, uint32_t kN>
  static void tile(const GemmArgs& args, uint32_t row, uint32_t i) {
    using Stored = typename W::Stored;
    const uint32_t k_size = args.weights->cols;
    const Stored* w = reinterpret_cast<const Stored*>(args.weights->data) + static_cast<size_t>(row) * k_size;
    const float* x = args.x + i * args.x_stride;
    F acc[kM][kN];
    for (uint32_t a = 0; a < kM; ++a) {
      for (uint32_t b = 0; b < kN; ++b) acc[a][b] = V::set(0.0F);
    }
    constexpr uint32_t kLine = 64 / sizeof(Stored);
    for (uint32_t k = 0; k < k_size; k += kWidth) {
      if constexpr (kM <= 3) {
        // The same place of the next tile, one line at a time.
        if (k % kLine == 0) {
          for (uint32_t b = 0; b < kN; ++b) __builtin_prefetch(w + static_cast<size_t>(kN + b) * k_size + k);
        }
        F xs[kM];
        for (uint32_t a = 0; a < kM; ++a) xs[a] = V::load(x + a * args.x_stride + k);
        for (uint32_t b = 0; b < kN; ++b) {
          const F weight = W::load(w + static_cast<size_t>(b) * k_size + k);
          for (uint32_t a = 0; a < kM; ++a) acc[a][b] = V::fma(xs[a], weight, acc[a][b]);
        }
      } else {
        F ws[kN];
        for (uint32_t b = 0; b < kN; ++b) ws[b] = W::load(w + static_cast<size_t>(b) * k_size + k);
        for (uint32_t a = 0; a < kM; ++a) {
          const F xs = V::load(x + a * args.x_stride + k);
          for (uint32_t b = 0; b < kN; ++b) acc[a][b] = V::fma(xs, ws[b], acc[a][b]);
        }
      }
    }
    for (uint32_t a = 0; a < kM; ++a) {
      float* y = args.y + (i + a) * args.y_stride + row;
      for (uint32_t b = 0; b < kN; ++b) {
        float value = V::sum(acc[a][b]);
        if (args.bias != nullptr) value += args.bias[row + b];
        y[b] = args.add ? y[b] + value : value;
      }
    }
  }

  // Weight rows [begin, end) against kM rows of x from i on.
  template <class W, uint32_t kM>
  static void strip(const GemmArgs& args, uint32_t begin, uint32_t end, uint32_t i) {
    constexpr uint32_t kN = kM == 1 ? 8 : kM <= 3 ? V::kFewColumns : V::kGemmColumns;
    uint32_t row = begin;
    for (; row + kN <= end; row += kN) tile<W, kM, kN>(args, row, i);
    for (; row < end; ++row) tile<W, kM, 1>(args, row, i);
  }

  template <class W, uint32_t kM>
  static void remainder(const GemmArgs& args, uint32_t begin, uint32_t end, uint32_t i) {
    if constexpr (kM > 0) {
      if (args.m - i == kM) {
        strip<W, kM>(args, begin, end, i);
      } else {
        remainder<W, kM - 1>(args, begin, end, i);
      }
    }
  }

  template <class W>
  static void product(const GemmArgs& args, uint32_t begin, uint32_t end) {
    const uint64_t fitting = kSliceBytes / args.weights->row_bytes() / 8 * 8;
    const auto slice = static_cast<uint32_t>(fitting < 8 ? 8 : fitting);
    for (uint32_t from = begin; from < end; from += slice) {
      const uint32_t to = end - from < slice ? end : from + slice;
      uint32_t i = 0;
      for (; i + V::kGemmRows <= args.m; i += V::kGemmRows) strip<W, V::kGemmRows>(args, from, to, i);
      remainder<W, V::kGemmRows - 1>(args, from, to, i);
    }
  }

  static void gemm(const GemmArgs& args, uint32_t begin, uint32_t end) {
    switch (args.weights->type) {
      case DataType::kBf16:
        return product<Bf16>(args, begin, end);
      case DataType::kF16:
        return product<F16>(args, begin, end);
      case DataType::kF32:
        return product<F32>(args, begin, end);
    }
  }

  // --- attention

  // Scores of kQ queries against kT vectors of tokens, from token t on.
  template <uint32_t kQ, uint32_t kT>
  static void score_tile(const AttentionArgs& args, const float* keys, uint32_t query, uint32_t t) {
    const float* q = args.q + static_cast<size_t>(query) * args.head_dim;
    F acc[kQ][kT];
    for (uint32_t a = 0; a < kQ; ++a) {
      for (uint32_t b = 0; b < kT; ++b) acc[a][b] = V::set(0.0F);
    }
    for (uint32_t d = 0; d < args.head_dim; ++d) {
      F key[kT];
      for (uint32_t b = 0; b < kT; ++b)
        key[b] = V::load(keys + static_cast<size_t>(d) * args.token_stride + t + b * kWidth);
      for (uint32_t a = 0; a < kQ; ++a) {
        const F element = V::set(q[a * args.head_dim + d]);
        for (uint32_t b = 0; b < kT; ++b) acc[a][b] = V::fma(element, key[b], acc[a][b]);
      }
    }
    for (uint32_t a = 0; a < kQ; ++a) {
      for (uint32_t b = 0; b < kT; ++b) {
        V::store(args.scores + static_cast<size_t>(query + a) * args.token_stride + t + b * kWidth,
                 acc[a][b] * args.scale);
      }
    }
  }

  template <uint32_t kQ>
  static void score_rows(const AttentionArgs& args, const float* keys, uint32_t query, uint32_t tokens) {
    uint32_t t = 0;
    for (; t + kWidth < tokens; t += 2 * kWidth) score_tile<kQ, 2>(args, keys, query, t);
    if (t < tokens) score_tile<kQ, 1>(args, keys, query, t);
  }

  // sum = sum * rescale + probabilities x values, for kQ queries and kD vectors of the head.
  template <uint32_t kQ, uint32_t kD>
  static void value_tile(const AttentionArgs& args, const float* values, const float* rescale, uint32_t query,
                         uint32_t d, uint32_t tokens) {
    F acc[kQ][kD];
    for (uint32_t a = 0; a < kQ; ++a) {
      const float* at = args.sum + static_cast<size_t>(query + a) * args.head_dim + d;
      for (uint32_t b = 0; b < kD; ++b) acc[a][b] = V::load(at + b * kWidth) * rescale[query + a];
    }
    const float* probability = args.scores + static_cast<size_t>(query) * args.token_stride;
    for (uint32_t t = 0; t < tokens; ++t) {
      F value[kD];
      for (uint32_t b = 0; b < kD; ++b)
        value[b] = V::load(values + static_cast<size_t>(t) * args.head_dim + d + b * kWidth);
      for (uint32_t a = 0; a < kQ; ++a) {
        const F p = V::set(probability[a * args.token_stride + t]);
        for (uint32_t b = 0; b < kD; ++b) acc[a][b] = V::fma(p, value[b], acc[a][b]);
      }
    }
    for (uint32_t a = 0; a < kQ; ++a) {
      float* at = args.sum + static_cast<size_t>(query + a) * args.head_dim + d;
      for (uint32_t b = 0; b < kD; ++b) V::store(at + b * kWidth, acc[a][b]);
    }
  }

  template <uint32_t kQ>
  static void value_rows(const AttentionArgs& args, const float* values, const float* rescale, uint32_t query,
                         uint32_t tokens) {
    uint32_t d = 0;
    for (; d + V::kHeadVectors * kWidth <= args.head_dim; d += V::kHeadVectors * kWidth) {
      value_tile<kQ, V::kHeadVectors>(args, values, rescale, query, d, tokens);
    }
    for (; d < args.head_dim; d += kWidth) value_tile<kQ, 1>(args, values, rescale, query, d, tokens);
  }

  // Turns the scores of one query into probabilities below the new maximum; gives the factor for what was summed
  // before.
  static float soften(const AttentionArgs& args, uint32_t query, int32_t hidden, int32_t visible, uint32_t tokens) {
    float* scores = args.scores + static_cast<size_t>(query) * args.token_stride;
    const F none = V::set(-__builtin_inff());
    F best = none;
    for (uint32_t t = 0; t < tokens; t += kWidth) {
      F score = V::keep_below(V::load(scores + t), none, visible - static_cast<int32_t>(t));
      if (hidden > static_cast<int32_t>(t)) score = V::keep_from(score, none, hidden - static_cast<int32_t>(t));
      V::store(scores + t, score);
      best = score > best ? score : best;
    }
    const float before = args.max[query];
    const float found = V::highest(best);
    const float max = found > before ? found : before;
    if (max == -__builtin_inff()) {  // nothing visible yet, or scores of -inf
      for (uint32_t t = 0; t < tokens; ++t) scores[t] = 0.0F;
      return 1.0F;
    }
    F total = V::set(0.0F);
    for (uint32_t t = 0; t < tokens; t += kWidth) {
      const F p = exp(V::load(scores + t) - max);
      V::store(scores + t, p);
      total = total + p;
    }
    const float rescale = exp(V::set(before - max))[0];
    args.max[query] = max;
    args.weight[query] = args.weight[query] * rescale + V::sum(total);
    return rescale;
  }

  static void attention(const AttentionArgs& args) {
    constexpr uint32_t kQ = 4;
    constexpr uint32_t kMostQueries = 64;
    float rescale[kMostQueries];
    for (uint32_t i = 0; i < args.queries; ++i) {
      args.max[i] = -__builtin_inff();
      args.weight[i] = 0.0F;
      for (uint32_t d = 0; d < args.head_dim; ++d) args.sum[static_cast<size_t>(i) * args.head_dim + d] = 0.0F;
    }
    for (uint32_t p = args.page_begin; p < args.page_end; ++p) {
      const auto first = static_cast<int32_t>(p * args.tokens_per_page);
      const auto capacity = static_cast<int32_t>(args.tokens_per_page);
      int32_t most = 0;
      for (uint32_t i = 0; i < args.queries; ++i) {
        const int32_t visible = args.visible[i] - first;
        if (visible > most) most = visible;
      }
      if (most <= 0) break;
      // Values beyond `most` are never read: a page may hold anything there.
      const auto tokens = static_cast<uint32_t>(most < capacity ? most : capacity);
      const size_t page = static_cast<size_t>(args.pages[p]) * args.page_stride;
      const float* keys = args.keys + page;
      const float* values = args.values + page;
      uint32_t i = 0;
      for (; i + kQ <= args.queries; i += kQ) score_rows<kQ>(args, keys, i, tokens);
      for (; i < args.queries; ++i) score_rows<1>(args, keys, i, tokens);
      for (i = 0; i < args.queries; ++i) {
        const int32_t visible = args.visible[i] - first;
        const int32_t hidden = args.hidden == nullptr ? 0 : args.hidden[i] - first;
        rescale[i] = soften(args, i, hidden, visible < capacity ? visible : capacity, tokens);
      }
      for (i = 0; i + kQ <= args.queries; i += kQ) value_rows<kQ>(args, values, rescale, i, tokens);
      for (; i < args.queries; ++i) value_rows<1>(args, values, rescale, i, tokens);
    }
  }

  // --- elementwise

  static void rms_norm(const float* x, const float* weight, float eps, uint32_t size, float* y) {
    F squares = V::set(0.0F);
    for (uint32_t i = 0; i < size; i += kWidth) {
      const F v = V::load(x + i);
      squares = V::fma(v, v, squares);
    }
    const float scale = 1.0F / __builtin_sqrtf(V::sum(squares) / static_cast<float>(size) + eps);
    for (uint32_t i = 0; i < size; i += kWidth) V::store(y + i, V::load(x + i) * scale * V::load(weight + i));
  }

  static F silu(F g) { return g / (exp(-g) + 1.0F); }

  // g / 2 * (1 + tanh(u)) = g / (1 + exp(-2 u)) with u = sqrt(2 / pi) * (g + 0.044715 g^3)
  static F gelu(F g) {
    const F u = (g * g * g * 0.044715F + g) * 0.79788456F;
    return g / (exp(u * -2.0F) + 1.0F);
  }

  static void silu_mul(const float* gate, const float* up, uint32_t size, float* y) {
    for (uint32_t i = 0; i < size; i += kWidth) V::store(y + i, silu(V::load(gate + i)) * V::load(up + i));
  }

  static void gelu_mul(const float* gate, const float* up, uint32_t size, float* y) {
    for (uint32_t i = 0; i < size; i += kWidth) V::store(y + i, gelu(V::load(gate + i)) * V::load(up + i));
  }

  // Rotary embedding: element i is paired with element i + head_dim / 2.
  static void rotate(float* head, const float* cos, const float* sin, uint32_t head_dim) {
    const uint32_t half = head_dim / 2;
    for (uint32_t i = 0; i < half; ++i) {
      const float a = head[i];
      const float b = head[i + half];
      head[i] = a * cos[i] - b * sin[i];
      head[i + half] = b * cos[i] + a * sin[i];
    }
  }

  template <class W>
  static void widen_row(const std::byte* from, uint32_t size, float* y) {
    const auto* at = reinterpret_cast<const typename W::Stored*>(from);
    for (uint32_t i = 0; i < size; i += kWidth) V::store(y + i, W::load(at + i));
  }

  static void widen(const Matrix& from, uint32_t row, float* y) {
    const std::byte* at = from.data + row * from.row_bytes();
    switch (from.type) {
      case DataType::kBf16:
        return widen_row<Bf16>(at, from.cols, y);
      case DataType::kF16:
        return widen_row<F16>(at, from.cols, y);
      case DataType::kF32:
        return widen_row<F32>(at, from.cols, y);
    }
  }

  static constexpr Kernels table(CpuIsa isa, const char* name) {
    return {.isa = isa,
            .name = name,
            .row_tile = 8,
            .gemm = gemm,
            .attention = attention,
            .rms_norm = rms_norm,
            .silu_mul = silu_mul,
            .gelu_mul = gelu_mul,
            .rotate = rotate,
            .widen = widen};
  }
};

}  // namespace
}  // namespace dyn::native

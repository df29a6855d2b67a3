// The fast kernels as templates over an arithmetic A; included by one .cc per instruction set, and nowhere else.
//
// A gives: Vector (of kernels_vector.h), X (type of an activation), Line (a packed line of 16 rows x 2 columns, ready
// to multiply), Pair (two neighbouring activations for all lanes), Sum (16 running sums), the conversions between them,
// and the register tile kRows x kPanels of a product; kManyPanels for one row, kFewPanels for two or three.
// FmaArithmetic below serves every instruction set with fp32 multiply-adds; that of vdpbf16ps is in its .cc. Internal
// linkage throughout, see kernels_impl.h.
//
// Cost model. Few rows (m < kRows): bound by reading the weights once; up to 8 panels are read side by side, so that as
// many chains of sums run, and each is prefetched. Many rows: bound by multiply-adds; a group of kPanels panels stays
// in L2 while all rows of x go past it.
#pragma once

#include "native/exec/cpu/fast/kernels.h"
#include "native/exec/cpu/kernels_impl.h"

namespace dyn::native {
namespace {

constexpr size_t kLineValues = 2 * kPanelRows;  // of a packed line: 16 rows, two columns

// fp32 multiply-adds of V; BF16 and INT8 are widened in registers.
template <class V, uint32_t kTileRows, uint32_t kTilePanels>
struct FmaArithmetic {
  using Vector = V;
  using F = typename V::Float;
  using U = typename V::Unsigned;
  using I = typename V::Int;
  using X = float;
  static constexpr uint32_t kVectors = kPanelRows / V::kWidth;
  static constexpr uint32_t kRows = kTileRows;
  static constexpr uint32_t kPanels = kTilePanels;
  static constexpr uint32_t kManyPanels = 8 / kVectors;
  static constexpr uint32_t kFewPanels = kVectors == 1 ? 4 : 1;

  struct Line {
    F even[kVectors];
    F odd[kVectors];
  };
  struct Pair {
    F even;
    F odd;
  };
  struct Sum {
    F lanes[kVectors];
  };

  static Line load(const uint16_t* at) {
    Line line;
    for (uint32_t i = 0; i < kVectors; ++i) {
      U words;
      __builtin_memcpy(&words, at + size_t{2} * i * V::kWidth, sizeof words);
      line.even[i] = reinterpret_cast<F>(words << 16);
      line.odd[i] = reinterpret_cast<F>(words & 0xFFFF'0000U);
    }
    return line;
  }
  static void load_two(const int8_t* at, Line (&lines)[2]) {
    for (uint32_t which = 0; which < 2; ++which) {
      for (uint32_t i = 0; i < kVectors; ++i) {
        const U words =
            V::load_half(reinterpret_cast<const uint16_t*>(at + which * kLineValues + size_t{2} * i * V::kWidth));
        lines[which].even[i] = __builtin_convertvector(reinterpret_cast<I>(words << 24) >> 24, F);
        lines[which].odd[i] = __builtin_convertvector(reinterpret_cast<I>(words << 16) >> 24, F);
      }
    }
  }
  // Two lines as BF16, which holds bytes exactly.
  static void widen_two(const int8_t* at, uint16_t* to) {
    for (uint32_t i = 0; i < 2 * kLineValues; ++i) {
      const float value = at[i];
      uint32_t bits = 0;
      __builtin_memcpy(&bits, &value, sizeof bits);
      to[i] = static_cast<uint16_t>(bits >> 16);
    }
  }
  static Pair pair(const X* x) { return {V::set(x[0]), V::set(x[1])}; }
  static void multiply_add(Sum& sum, const Line& line, const Pair& x) {
    for (uint32_t i = 0; i < kVectors; ++i) {
      sum.lanes[i] = V::fma(x.even, line.even[i], sum.lanes[i]);
      sum.lanes[i] = V::fma(x.odd, line.odd[i], sum.lanes[i]);
    }
  }

  static void store_bf16(uint16_t* at, F v) {
    U bits = reinterpret_cast<U>(v);
    const U rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    bits = v == v ? rounded : (bits >> 16) | 0x40;  // NaN stays one
    const auto half = __builtin_convertvector(bits, typename V::Half);
    __builtin_memcpy(at, &half, sizeof half);
  }
  static void store(X* at, F v) { V::store(at, v); }
};

template <class A>
struct FastImpl {
  using V = typename A::Vector;
  using F = typename V::Float;
  using X = typename A::X;
  using Line = typename A::Line;
  using Pair = typename A::Pair;
  using Sum = typename A::Sum;
  static constexpr uint32_t kWidth = V::kWidth;
  static constexpr uint32_t kVectors = kPanelRows / kWidth;
  static constexpr uint32_t kPrefetchLines = 24;
  // INT8 is widened again for every tile, so high tiles of it are not worth their code.
  static constexpr uint32_t kInt8Rows = A::kRows < 4 ? A::kRows : 4;
  static constexpr uint32_t kFewRows = 16;

  // --- the tile: kR rows of x times kN panels, `pairs` pairs of columns

  // `panel_stride`, `line_stride` in stored values; x: row r, pair 0. Sums go on from what they hold.
  template <class Stored, uint32_t kR, uint32_t kN, bool kPrefetch>
  [[gnu::always_inline]] static void run_lines(const Stored* at, size_t panel_stride, size_t line_stride, const X* x,
                                               size_t x_stride, uint32_t pairs, size_t ahead, Sum (&sums)[kR][kN]) {
    if constexpr (sizeof(Stored) == 1) {
#pragma clang loop unroll(disable)
      for (uint32_t pair = 0; pair < pairs; pair += 2) {
#pragma clang loop unroll(full)
        for (uint32_t n = 0; n < kN; ++n) {
          const Stored* line = at + n * panel_stride;
          if constexpr (kPrefetch) __builtin_prefetch(line + ahead);
          Line lines[2];
          A::load_two(line, lines);
#pragma clang loop unroll(full)
          for (uint32_t r = 0; r < kR; ++r) {
            A::multiply_add(sums[r][n], lines[0], A::pair(x + r * x_stride));
            A::multiply_add(sums[r][n], lines[1], A::pair(x + r * x_stride + 2));
          }
        }
        at += 2 * line_stride;
        x += 4;
      }
    } else {
#pragma clang loop unroll(disable)
      for (uint32_t pair = 0; pair < pairs; ++pair) {
        Line lines[kN];
#pragma clang loop unroll(full)
        for (uint32_t n = 0; n < kN; ++n) {
          if constexpr (kPrefetch) __builtin_prefetch(at + n * panel_stride + ahead);
          lines[n] = A::load(at + n * panel_stride);
        }
#pragma clang loop unroll(full)
        for (uint32_t r = 0; r < kR; ++r) {
          const Pair pair_of_x = A::pair(x + r * x_stride);
#pragma clang loop unroll(full)
          for (uint32_t n = 0; n < kN; ++n) A::multiply_add(sums[r][n], lines[n], pair_of_x);
        }
        at += line_stride;
        x += 2;
      }
    }
  }

  template <uint32_t kR, uint32_t kN>
  [[gnu::always_inline]] static void clear(Sum (&sums)[kR][kN]) {
#pragma clang loop unroll(full)
    for (uint32_t r = 0; r < kR; ++r) {
#pragma clang loop unroll(full)
      for (uint32_t n = 0; n < kN; ++n) {
        for (uint32_t i = 0; i < kVectors; ++i) sums[r][n].lanes[i] = V::set(0.0F);
      }
    }
  }

  // --- products

  // What a strip of a product needs besides its rows and panels.
  struct Product {
    const LinearArgs& args;
    const std::byte* panels;  // where panel `first` lies
    uint32_t first;           // y's column 0 is this panel's first row
    const float* scales;      // of the matrix' row 0, or null
  };

  template <class Stored, uint32_t kR, uint32_t kN>
  static void linear_tile(const Product& p, uint32_t panel, uint32_t i) {
    const LinearArgs& args = p.args;
    const uint32_t pairs = args.weights->cols / 2;
    const size_t panel_stride = size_t{pairs} * kLineValues;
    const auto* at = reinterpret_cast<const Stored*>(p.panels) + (panel - p.first) * panel_stride;
    const X* x = reinterpret_cast<const X*>(args.x) + i * args.x_stride;
    Sum sums[kR][kN];
    clear(sums);
    if constexpr (kR < A::kRows) {
      // Each panel's own lines ahead; near its end those of the panel that this stream reads next.
      const uint32_t tail = pairs < kPrefetchLines ? pairs : kPrefetchLines;
      const uint32_t body = (pairs - tail) & ~1U;
      run_lines<Stored, kR, kN, true>(at, panel_stride, kLineValues, x, args.x_stride, body,
                                      kPrefetchLines * kLineValues, sums);
      run_lines<Stored, kR, kN, true>(at + body * kLineValues, panel_stride, kLineValues, x + size_t{2} * body,
                                      args.x_stride, pairs - body,
                                      (kN - 1) * panel_stride + kPrefetchLines * kLineValues, sums);
    } else {
      run_lines<Stored, kR, kN, false>(at, panel_stride, kLineValues, x, args.x_stride, pairs, 0, sums);
    }
    float values[kR][kN][kPanelRows];
#pragma clang loop unroll(full)
    for (uint32_t r = 0; r < kR; ++r) {
#pragma clang loop unroll(full)
      for (uint32_t n = 0; n < kN; ++n) {
        for (uint32_t v = 0; v < kVectors; ++v) V::store(values[r][n] + v * kWidth, sums[r][n].lanes[v]);
      }
    }
    finish(p, values[0][0], panel, i, kR, kN);
  }

  // y = sum * scale + bias, or added to y, for `rows` rows of x from i on and `panels` panels.
  [[gnu::noinline]] static void finish(const Product& p, const float* sums, uint32_t panel, uint32_t i, uint32_t rows,
                                       uint32_t panels) {
    const LinearArgs& args = p.args;
    const uint32_t first = panel * kPanelRows;
    const uint32_t end =
        panels * kPanelRows < args.weights->rows - first ? panels * kPanelRows : args.weights->rows - first;
    const uint32_t whole = end / kWidth * kWidth;
    const float* scales = p.scales == nullptr ? nullptr : p.scales + first;
    const float* bias = args.bias == nullptr ? nullptr : args.bias + first;
    for (uint32_t r = 0; r < rows; ++r, sums += panels * kPanelRows) {
      float* y = args.y + (i + r) * args.y_stride + (panel - p.first) * kPanelRows;
      for (uint32_t n = 0; n < whole; n += kWidth) {
        F value = V::load(sums + n);
        if (scales != nullptr) value = value * V::load(scales + n);
        if (bias != nullptr) value = value + V::load(bias + n);
        if (args.add) value = V::load(y + n) + value;
        V::store(y + n, value);
      }
      for (uint32_t n = whole; n < end; ++n) {
        float value = sums[n];
        if (scales != nullptr) value = value * scales[n];
        if (bias != nullptr) value = value + bias[n];
        y[n] = args.add ? y[n] + value : value;
      }
    }
  }

  // kR rows of x from i on against panels [begin, end).
  template <class Stored, uint32_t kR>
  static void linear_strip(const Product& p, uint32_t begin, uint32_t end, uint32_t i) {
    constexpr uint32_t kN = kR == 1 ? A::kManyPanels : kR <= 3 ? A::kFewPanels : A::kPanels;
    for (; begin + kN <= end; begin += kN) linear_tile<Stored, kR, kN>(p, begin, i);
    if constexpr (kR == 1) {
      linear_rest<Stored, kR, kN - 1>(p, begin, end - begin, i);
    } else {
      for (; begin < end; ++begin) linear_tile<Stored, kR, 1>(p, begin, i);
    }
  }

  // The last panels, fewer than a tile has.
  template <class Stored, uint32_t kR, uint32_t kN>
  static void linear_rest(const Product& p, uint32_t panel, uint32_t panels, uint32_t i) {
    if constexpr (kN > 0) {
      if (panels == kN) {
        linear_tile<Stored, kR, kN>(p, panel, i);
      } else {
        linear_rest<Stored, kR, kN - 1>(p, panel, panels, i);
      }
    }
  }

  template <class Stored, uint32_t kR>
  static void linear_rows(const Product& p, uint32_t begin, uint32_t end, uint32_t i, uint32_t rows) {
    if constexpr (kR > 0) {
      if (rows == kR) {
        linear_strip<Stored, kR>(p, begin, end, i);
      } else {
        linear_rows<Stored, kR - 1>(p, begin, end, i, rows);
      }
    }
  }

  // All rows of x against panels [begin, end), in tiles of nearly equal height.
  template <class Stored>
  static void linear_group(const Product& p, uint32_t begin, uint32_t end) {
    constexpr uint32_t kMost = sizeof(Stored) == 1 ? kInt8Rows : A::kRows;
    const uint32_t m = p.args.m;
    for (uint32_t i = 0; i < m;) {
      const uint32_t tiles = (m - i + kMost - 1) / kMost;
      const uint32_t rows = (m - i + tiles - 1) / tiles;
      linear_rows<Stored, kMost>(p, begin, end, i, rows);
      i += rows;
    }
  }

  static void linear(const LinearArgs& args, uint32_t begin, uint32_t end) {
    const Matrix& weights = *args.weights;
    const bool int8 = weights.layout == MatrixLayout::kPackedInt8;
    Product p{
        .args = args, .panels = weights.panel(begin), .first = begin, .scales = int8 ? weights.scales() : nullptr};
    // Widened again and again in registers, or once in memory.
    const bool widen_once = int8 && args.widened != nullptr && args.m > kFewRows;
    if (args.m <= (int8 ? kInt8Rows : A::kRows)) {  // one tile high: each panel is read once anyway
      int8 ? linear_group<int8_t>(p, begin, end) : linear_group<uint16_t>(p, begin, end);
      return;
    }
    for (uint32_t panel = begin; panel < end; panel += A::kPanels) {
      const uint32_t last = end - panel < A::kPanels ? end : panel + A::kPanels;
      LinearArgs part = args;
      part.y += (panel - begin) * kPanelRows;
      Product group{.args = part, .panels = weights.panel(panel), .first = panel, .scales = p.scales};
      if (widen_once) {
        for (uint32_t i = panel; i < last; ++i) {
          widen_panel(weights, i, args.widened + size_t{i - panel} * kPanelRows * weights.cols);
        }
        group.panels = reinterpret_cast<const std::byte*>(args.widened);
      }
      int8 && !widen_once ? linear_group<int8_t>(group, panel, last) : linear_group<uint16_t>(group, panel, last);
    }
  }

  // The bytes of a panel as BF16, which holds them exactly; without scales.
  static void widen_panel(const Matrix& weights, uint32_t panel, uint16_t* to) {
    const auto* from = reinterpret_cast<const int8_t*>(weights.panel(panel));
    for (const int8_t* end = from + size_t{kPanelRows} * weights.cols; from < end;
         from += 2 * kLineValues, to += 2 * kLineValues) {
      A::widen_two(from, to);
    }
  }

  // --- attention

  // A block of pages, looked at together.
  struct Block {
    uint32_t pages;       // of the block
    uint32_t columns;     // of its scores: pages * token_stride
    int32_t first;        // token
    const int32_t* page;  // its part of the block table
  };

  // Scores of kR queries against the keys of one page.
  template <uint32_t kR>
  static void score_page(const FastAttentionArgs& args, const uint16_t* keys, uint32_t query, uint32_t columns,
                         uint32_t column) {
    constexpr uint32_t kN = 2;
    const uint32_t pairs = args.head_dim / 2;
    const size_t panel_stride = size_t{pairs} * kLineValues;
    const X* q = reinterpret_cast<const X*>(args.q) + static_cast<size_t>(query) * args.head_dim;
    float* scores = args.scores + static_cast<size_t>(query) * columns + column;
    auto write = [&](const Sum& sum, uint32_t r, uint32_t token) {
      for (uint32_t i = 0; i < kVectors; ++i) {
        V::store(scores + static_cast<size_t>(r) * columns + token + i * kWidth, sum.lanes[i] * args.scale);
      }
    };
    const uint32_t panels = args.token_stride / kPanelRows;
    uint32_t panel = 0;
    for (; panel + kN <= panels; panel += kN) {
      Sum sums[kR][kN];
      clear(sums);
      run_lines<uint16_t, kR, kN, false>(keys + panel * panel_stride, panel_stride, kLineValues, q, args.head_dim,
                                         pairs, 0, sums);
#pragma clang loop unroll(full)
      for (uint32_t r = 0; r < kR; ++r) {
#pragma clang loop unroll(full)
        for (uint32_t n = 0; n < kN; ++n) write(sums[r][n], r, (panel + n) * kPanelRows);
      }
    }
    if (panel < panels) {
      Sum sums[kR][1];
      clear(sums);
      run_lines<uint16_t, kR, 1, false>(keys + panel * panel_stride, panel_stride, kLineValues, q, args.head_dim, pairs,
                                        0, sums);
#pragma clang loop unroll(full)
      for (uint32_t r = 0; r < kR; ++r) write(sums[r][0], r, panel * kPanelRows);
    }
  }

  // sum = sum * rescale + probabilities x values, for kR queries and kN panels of the head.
  template <uint32_t kR, uint32_t kN>
  static void value_tile(const FastAttentionArgs& args, const Block& block, const float* rescale, uint32_t query,
                         uint32_t d, int32_t most) {
    Sum sums[kR][kN];
    float* to = args.sum + static_cast<size_t>(query) * args.head_dim + d;
#pragma clang loop unroll(full)
    for (uint32_t r = 0; r < kR; ++r) {
#pragma clang loop unroll(full)
      for (uint32_t n = 0; n < kN; ++n) {
        for (uint32_t i = 0; i < kVectors; ++i) {
          sums[r][n].lanes[i] =
              V::load(to + static_cast<size_t>(r) * args.head_dim + n * kPanelRows + i * kWidth) * rescale[query + r];
        }
      }
    }
    const X* probabilities =
        reinterpret_cast<const X*>(args.probabilities) + static_cast<size_t>(query) * block.columns;
    for (uint32_t p = 0; p < block.pages; ++p) {
      const int32_t left = most - block.first - static_cast<int32_t>(p * args.tokens_per_page);
      if (left <= 0) break;
      if (block.page[p] < 0) continue;
      // Values beyond `most` and its pair are never read: a page may hold anything there.
      const uint32_t tokens =
          static_cast<uint32_t>(left) < args.tokens_per_page ? static_cast<uint32_t>(left) : args.tokens_per_page;
      const uint16_t* values = args.values + static_cast<size_t>(block.page[p]) * args.page_stride;
      run_lines<uint16_t, kR, kN, false>(values + size_t{2} * d, kLineValues, size_t{2} * args.head_dim,
                                         probabilities + p * args.token_stride, block.columns, (tokens + 1) / 2, 0,
                                         sums);
    }
#pragma clang loop unroll(full)
    for (uint32_t r = 0; r < kR; ++r) {
#pragma clang loop unroll(full)
      for (uint32_t n = 0; n < kN; ++n) {
        for (uint32_t i = 0; i < kVectors; ++i) {
          V::store(to + static_cast<size_t>(r) * args.head_dim + n * kPanelRows + i * kWidth, sums[r][n].lanes[i]);
        }
      }
    }
  }

  template <uint32_t kR>
  static void value_rows(const FastAttentionArgs& args, const Block& block, const float* rescale, uint32_t query,
                         int32_t most) {
    constexpr uint32_t kN = kVectors > 1 ? 1 : 4;
    uint32_t d = 0;
    for (; d + kN * kPanelRows <= args.head_dim; d += kN * kPanelRows) {
      value_tile<kR, kN>(args, block, rescale, query, d, most);
    }
    for (; d < args.head_dim; d += kPanelRows) value_tile<kR, 1>(args, block, rescale, query, d, most);
  }

  // Scores of one query become probabilities below the new maximum; gives the factor for what was summed before.
  static float soften(const FastAttentionArgs& args, const Block& block, uint32_t query) {
    float* scores = args.scores + static_cast<size_t>(query) * block.columns;
    X* probabilities = reinterpret_cast<X*>(args.probabilities) + static_cast<size_t>(query) * block.columns;
    const F none = V::set(-__builtin_inff());
    const auto capacity = static_cast<int32_t>(args.tokens_per_page);
    F best = none;
    for (uint32_t p = 0; p < block.pages; ++p) {
      const int32_t first = block.first + static_cast<int32_t>(p) * capacity;
      int32_t visible = args.visible[query] - first;
      if (visible > capacity) visible = capacity;
      if (block.page[p] < 0) visible = 0;
      const int32_t hidden = args.hidden == nullptr ? 0 : args.hidden[query] - first;
      float* at = scores + p * args.token_stride;
      for (uint32_t t = 0; t < args.token_stride; t += kWidth) {
        const auto token = static_cast<int32_t>(t);
        F score = V::load(at + t);
        if (visible < token + static_cast<int32_t>(kWidth)) score = V::keep_below(score, none, visible - token);
        if (hidden > token) score = V::keep_from(score, none, hidden - token);
        V::store(at + t, score);
        best = score > best ? score : best;
      }
    }
    const float before = args.max[query];
    const float found = V::highest(best);
    const float max = found > before ? found : before;
    if (max == -__builtin_inff()) {  // nothing visible yet, or scores of -inf
      for (uint32_t t = 0; t < block.columns; t += kWidth) A::store(probabilities + t, V::set(0.0F));
      return 1.0F;
    }
    F total = V::set(0.0F);
    for (uint32_t t = 0; t < block.columns; t += kWidth) {
      const F p = Impl<V>::exp(V::load(scores + t) - max);
      A::store(probabilities + t, p);
      total = total + p;
    }
    const float rescale = max == before ? 1.0F : Impl<V>::exp(V::set(before - max))[0];
    args.max[query] = max;
    args.weight[query] = args.weight[query] * rescale + V::sum(total);
    return rescale;
  }

  template <uint32_t kR>
  static void score_block(const FastAttentionArgs& args, const Block& block, uint32_t query, int32_t most) {
    for (uint32_t p = 0; p < block.pages; ++p) {
      if (block.first + static_cast<int32_t>(p * args.tokens_per_page) >= most) break;
      if (block.page[p] < 0) continue;
      score_page<kR>(args, args.keys + static_cast<size_t>(block.page[p]) * args.page_stride, query, block.columns,
                     p * args.token_stride);
    }
  }

  // Queries [i, i + rows) of both products, for a number of rows known when compiled.
  template <uint32_t kR>
  static void score_some(const FastAttentionArgs& args, const Block& block, uint32_t i, uint32_t rows, int32_t most) {
    if constexpr (kR > 0) {
      if (rows == kR) return score_block<kR>(args, block, i, most);
      score_some<kR - 1>(args, block, i, rows, most);
    }
  }
  template <uint32_t kR>
  static void value_some(const FastAttentionArgs& args, const Block& block, const float* rescale, uint32_t i,
                         uint32_t rows, int32_t most) {
    if constexpr (kR > 0) {
      if (rows == kR) return value_rows<kR>(args, block, rescale, i, most);
      value_some<kR - 1>(args, block, rescale, i, rows, most);
    }
  }

  static void attention(const FastAttentionArgs& args) {
    constexpr uint32_t kR = kVectors > 1 ? 4 : 6;
    float rescale[FastKernels::kMaxQueries];
    for (uint32_t i = 0; i < args.queries; ++i) {
      args.max[i] = -__builtin_inff();
      args.weight[i] = 0.0F;
      float* sum = args.sum + static_cast<size_t>(i) * args.head_dim;
      for (uint32_t d = 0; d < args.head_dim; d += kWidth) V::store(sum + d, V::set(0.0F));
    }
    int32_t most = 0;
    for (uint32_t i = 0; i < args.queries; ++i) most = args.visible[i] > most ? args.visible[i] : most;
    for (uint32_t at = args.page_begin; at < args.page_end; at += args.block_pages) {
      Block block{};
      block.pages = args.page_end - at < args.block_pages ? args.page_end - at : args.block_pages;
      block.columns = block.pages * args.token_stride;
      block.first = static_cast<int32_t>(at * args.tokens_per_page);
      block.page = args.pages + at;
      if (block.first >= most) break;
      for (uint32_t i = 0; i < args.queries; i += kR) {
        score_some<kR>(args, block, i, args.queries - i < kR ? args.queries - i : kR, most);
      }
      for (uint32_t i = 0; i < args.queries; ++i) rescale[i] = soften(args, block, i);
      for (uint32_t i = 0; i < args.queries; i += kR) {
        value_some<kR>(args, block, rescale, i, args.queries - i < kR ? args.queries - i : kR, most);
      }
    }
  }

  // --- elementwise

  static void rms_norm(const float* x, const float* weight, float eps, uint32_t size, std::byte* to) {
    X* y = reinterpret_cast<X*>(to);
    F squares = V::set(0.0F);
    for (uint32_t i = 0; i < size; i += kWidth) {
      const F v = V::load(x + i);
      squares = V::fma(v, v, squares);
    }
    const float scale = 1.0F / __builtin_sqrtf(V::sum(squares) / static_cast<float>(size) + eps);
    for (uint32_t i = 0; i < size; i += kWidth) A::store(y + i, V::load(x + i) * scale * V::load(weight + i));
  }

  static void silu_mul(const float* gate, const float* up, uint32_t size, std::byte* to) {
    X* y = reinterpret_cast<X*>(to);
    for (uint32_t i = 0; i < size; i += kWidth) A::store(y + i, Impl<V>::silu(V::load(gate + i)) * V::load(up + i));
  }

  static void gelu_mul(const float* gate, const float* up, uint32_t size, std::byte* to) {
    X* y = reinterpret_cast<X*>(to);
    for (uint32_t i = 0; i < size; i += kWidth) A::store(y + i, Impl<V>::gelu(V::load(gate + i)) * V::load(up + i));
  }

  static void narrow(const float* x, uint32_t size, std::byte* to) {
    X* y = reinterpret_cast<X*>(to);
    for (uint32_t i = 0; i < size; i += kWidth) A::store(y + i, V::load(x + i));
  }

  static void narrow_bf16(const float* x, uint32_t size, uint16_t* y) {
    for (uint32_t i = 0; i < size; i += kWidth) A::store_bf16(y + i, V::load(x + i));
  }

  static constexpr FastKernels table(CpuIsa isa, const char* name) {
    return {.isa = isa,
            .name = name,
            .activation_bytes = sizeof(X),
            .linear = linear,
            .attention = attention,
            .rms_norm = rms_norm,
            .silu_mul = silu_mul,
            .gelu_mul = gelu_mul,
            .narrow = narrow,
            .narrow_bf16 = narrow_bf16};
  }
};

}  // namespace
}  // namespace dyn::native

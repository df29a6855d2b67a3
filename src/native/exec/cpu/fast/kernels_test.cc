#include "native/exec/cpu/fast/kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "native/exec/cpu/fast/attention.h"

namespace dyn::native {
namespace {

std::vector<float> noise(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
  std::vector<float> values(count);
  for (float& v : values) v = uniform(random);
  return values;
}

// Random weights, packed, and what they mean.
struct Packed {
  Packed(MatrixLayout layout, uint32_t rows, uint32_t cols) : values(size_t{rows} * cols) {
    matrix = {.layout = layout, .rows = rows, .cols = cols};
    memory.resize(matrix.bytes());
    matrix.data = memory.data();
    std::vector<uint16_t> stored(values.size());
    const std::vector<float> source = noise(values.size(), rows + cols);
    for (size_t i = 0; i < stored.size(); ++i) {
      stored[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(source[i]) >> 16);
    }
    pack_rows(matrix, reinterpret_cast<const std::byte*>(stored.data()), 0, rows);
    for (uint32_t row = 0; row < rows; ++row) unpack_row(matrix, row, values.data() + size_t{row} * cols);
  }
  Matrix matrix;
  std::vector<std::byte> memory;
  std::vector<float> values;
};

class FastKernelsTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    kernels_ = fast_kernels_for(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this machine lacks the instruction set";
  }

  std::vector<std::byte> narrow(const std::vector<float>& x) const {
    std::vector<std::byte> to(x.size() * kernels_->activation_bytes);
    kernels_->narrow(x.data(), static_cast<uint32_t>(x.size()), to.data());
    return to;
  }
  // What activations hold.
  std::vector<float> widen_back(const std::vector<std::byte>& x) const {
    std::vector<float> to(x.size() / kernels_->activation_bytes);
    widen(kernels_->activation_bytes == 2 ? DataType::kBf16 : DataType::kF32, x.data(), to.size(), to.data());
    return to;
  }

  const FastKernels* kernels_ = nullptr;
};

struct Call {
  uint32_t m;
  bool add = false;
  bool widened = false;
};

TEST_P(FastKernelsTest, ProductsAreRightForEveryShapeOfTile) {
  for (const MatrixLayout layout : {MatrixLayout::kPackedBf16, MatrixLayout::kPackedInt8}) {
    for (const uint32_t cols : {16U, 48U, 144U}) {
      for (const uint32_t rows : {7U, 37U, 160U, 215U}) {
        const Packed w(layout, rows, cols);
        const std::vector<float> bias = noise(rows, 3);
        const size_t stride = cols + 16;
        std::vector<uint16_t> widened(size_t{FastKernels::kMaxPanels} * kPanelRows * cols);
        for (const Call call : {Call{1}, Call{1, true}, Call{2}, Call{3}, Call{4}, Call{5}, Call{6, true}, Call{7},
                                Call{9}, Call{13, true, true}, Call{16, false, true}, Call{29, false, true}}) {
          const auto x = narrow(noise(call.m * stride, call.m));
          const auto exact = widen_back(x);
          const std::vector<float> before = noise(size_t{call.m} * (rows + 3), call.m + 100);
          std::vector<float> y = before;
          LinearArgs args{.weights = &w.matrix,
                          .bias = bias.data(),
                          .x = x.data(),
                          .x_stride = stride,
                          .m = call.m,
                          .y = y.data(),
                          .y_stride = rows + 3,
                          .add = call.add,
                          .widened = call.widened ? widened.data() : nullptr};
          const uint32_t cut = w.matrix.panels() / 3;
          kernels_->linear(args, 0, cut);
          args.y += size_t{cut} * kPanelRows;
          kernels_->linear(args, cut, w.matrix.panels());
          for (uint32_t i = 0; i < call.m; ++i) {
            for (uint32_t n = 0; n < rows + 3; ++n) {
              const size_t at = size_t{i} * (rows + 3) + n;
              if (n >= rows) {
                ASSERT_EQ(y[at], before[at]) << "written beyond the matrix";
                continue;
              }
              double want = static_cast<double>(bias[n]) + (call.add ? static_cast<double>(before[at]) : 0.0);
              for (uint32_t k = 0; k < cols; ++k) {
                want +=
                    static_cast<double>(exact[i * stride + k]) * static_cast<double>(w.values[size_t{n} * cols + k]);
              }
              ASSERT_NEAR(y[at], want, 1e-4)
                  << to_string(layout) << " m " << call.m << " row " << n << " of " << rows << " k " << cols;
            }
          }
        }
      }
    }
  }
}

// An element is the same bits whatever else is computed with it.
TEST_P(FastKernelsTest, ProductsDoNotDependOnTheirCompany) {
  constexpr uint32_t kRows = 150;
  constexpr uint32_t kCols = 208;
  constexpr uint32_t kMost = 40;
  const auto x = narrow(noise(size_t{kMost} * kCols, 9));
  std::vector<uint16_t> widened(size_t{FastKernels::kMaxPanels} * kPanelRows * kCols);
  for (const MatrixLayout layout : {MatrixLayout::kPackedBf16, MatrixLayout::kPackedInt8}) {
    const Packed w(layout, kRows, kCols);
    auto product = [&](uint32_t first, uint32_t m, bool widen_once) {
      std::vector<float> y(size_t{m} * kRows);
      kernels_->linear({.weights = &w.matrix,
                        .x = x.data() + size_t{first} * kCols * kernels_->activation_bytes,
                        .x_stride = kCols,
                        .m = m,
                        .y = y.data(),
                        .y_stride = kRows,
                        .widened = widen_once ? widened.data() : nullptr},
                       0, w.matrix.panels());
      return y;
    };
    const auto whole = product(0, kMost, true);
    for (uint32_t m = 1; m <= 17; ++m) {
      for (const uint32_t first : {0U, 5U, kMost - m}) {
        const auto part = product(first, m, m % 2 == 0);
        ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + size_t{first} * kRows)) << m << " " << first;
      }
    }
  }
}

// Against the definition, over pages in any order, windows and pages of any size; garbage behind the last token.
TEST_P(FastKernelsTest, AttentionIsRight) {
  for (const uint32_t per_page : {5U, 16U, 32U, 100U}) {
    for (const uint32_t head_dim : {16U, 80U, 128U}) {
      ModelConfig config;
      config.num_layers = config.num_heads = config.num_kv_heads = 1;
      config.head_dim = head_dim;
      const FastKvLayout layout(config, per_page);
      constexpr uint32_t kTokens = 203;
      constexpr uint32_t kQueries = 9;
      const uint32_t pages = (kTokens + per_page - 1) / per_page;
      const uint16_t nan = 0x7FC0;
      std::vector<uint16_t> pool(pages * layout.page, nan);
      std::vector<int32_t> table(pages);
      std::vector<float> keys = noise(size_t{kTokens} * head_dim, 1);
      std::vector<float> values = noise(size_t{kTokens} * head_dim, 2);
      std::vector<uint16_t> bits(head_dim);
      for (uint32_t p = 0; p < pages; ++p) table[p] = static_cast<int32_t>(pages - 1 - p);
      for (uint32_t t = 0; t < kTokens; ++t) {
        uint16_t* page = pool.data() + static_cast<size_t>(table[t / per_page]) * layout.page;
        for (std::vector<float>* source : {&keys, &values}) {
          float* row = source->data() + size_t{t} * head_dim;
          kernels_->narrow_bf16(row, head_dim, bits.data());
          widen(DataType::kBf16, reinterpret_cast<const std::byte*>(bits.data()), head_dim, row);
          source == &keys
              ? layout.write_key(page + layout.keys(0, 0), t % per_page, bits.data())
              : layout.write_value(page + layout.values(0, 1, 0), t % per_page, bits.data(), t + 1 == kTokens);
        }
      }
      const auto q = narrow(noise(size_t{kQueries} * head_dim, 3));
      const auto exact = widen_back(q);
      std::vector<int32_t> visible(kQueries);
      std::vector<int32_t> hidden(kQueries);
      for (uint32_t i = 0; i < kQueries; ++i) {
        visible[i] = static_cast<int32_t>(kTokens - 2 * (kQueries - 1 - i));
        hidden[i] = i % 3 == 0 ? 0 : visible[i] - 40;
      }
      const uint32_t block_pages = std::max(1U, 64 / per_page);
      const size_t columns = size_t{block_pages} * layout.token_stride;
      std::vector<float> scores(kQueries * columns);
      std::vector<std::byte> probabilities(kQueries * columns * kernels_->activation_bytes);
      std::vector<float> sum(size_t{kQueries} * head_dim);
      std::vector<float> max(kQueries);
      std::vector<float> weight(kQueries);
      kernels_->attention({.q = q.data(),
                           .queries = kQueries,
                           .head_dim = head_dim,
                           .scale = 0.5F,
                           .visible = visible.data(),
                           .hidden = hidden.data(),
                           .pages = table.data(),
                           .page_begin = 0,
                           .page_end = pages,
                           .block_pages = block_pages,
                           .keys = pool.data() + layout.keys(0, 0),
                           .values = pool.data() + layout.values(0, 1, 0),
                           .page_stride = layout.page,
                           .tokens_per_page = per_page,
                           .token_stride = layout.token_stride,
                           .scores = scores.data(),
                           .probabilities = probabilities.data(),
                           .sum = sum.data(),
                           .max = max.data(),
                           .weight = weight.data()});
      for (uint32_t i = 0; i < kQueries; ++i) {
        std::vector<double> want(head_dim);
        double total = 0;
        for (int32_t t = hidden[i]; t < visible[i]; ++t) {
          const size_t at = static_cast<size_t>(t) * head_dim;
          double score = 0;
          for (uint32_t d = 0; d < head_dim; ++d) {
            score += static_cast<double>(exact[size_t{i} * head_dim + d]) * static_cast<double>(keys[at + d]);
          }
          const double p = std::exp(0.5 * score);
          total += p;
          for (uint32_t d = 0; d < head_dim; ++d) want[d] += p * static_cast<double>(values[at + d]);
        }
        for (uint32_t d = 0; d < head_dim; ++d) {
          // Probabilities are rounded to BF16 where activations are.
          ASSERT_NEAR(sum[size_t{i} * head_dim + d] / weight[i], want[d] / total,
                      kernels_->activation_bytes == 2 ? 2e-3 : 1e-5)
              << "pages of " << per_page << ", head of " << head_dim << ", query " << i;
        }
      }
    }
  }
}

TEST_P(FastKernelsTest, ElementwiseFunctionsRoundTheOraclesResults) {
  constexpr uint32_t kSize = 96;
  const Kernels& oracle = *kernels_for(CpuIsa::kPortable);
  const auto a = noise(kSize, 1);
  const auto b = noise(kSize, 2);
  const double tolerance = kernels_->activation_bytes == 2 ? 0x1p-8 : 1e-5;
  auto expect_close = [&](const std::vector<float>& want, const std::vector<std::byte>& got) {
    const auto values = widen_back(got);
    for (uint32_t i = 0; i < kSize; ++i) {
      EXPECT_NEAR(values[i], want[i], std::fabs(static_cast<double>(want[i])) * tolerance + 1e-7);
    }
  };
  std::vector<float> want(kSize);
  std::vector<std::byte> got(kSize * kernels_->activation_bytes);
  oracle.rms_norm(a.data(), b.data(), 1e-5F, kSize, want.data());
  kernels_->rms_norm(a.data(), b.data(), 1e-5F, kSize, got.data());
  expect_close(want, got);
  oracle.silu_mul(a.data(), b.data(), kSize, want.data());
  kernels_->silu_mul(a.data(), b.data(), kSize, got.data());
  expect_close(want, got);
  oracle.gelu_mul(a.data(), b.data(), kSize, want.data());
  kernels_->gelu_mul(a.data(), b.data(), kSize, got.data());
  expect_close(want, got);
}

TEST_P(FastKernelsTest, RoundsToNearestEven) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> values = {
      1.0F, 0x1.01p0F, 0x1.03p0F, 0x1.010002p0F, -0x1.01p0F,    0x1.FFp127F,     0x1.FEFFFEp127F, inf,
      -inf, 0.0F,      -0.0F,     3.0e38F,       std::nanf(""), -std::nanf("1"), 0x1.00FFFEp0F,   1e-30F};
  const uint16_t want[] = {0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF80, 0x7F80, 0x7F7F, 0x7F80,
                           0xFF80, 0x0000, 0x8000, 0x7F62, 0x7FC0, 0xFFC0, 0x3F80, 0x0DA2};
  std::vector<uint16_t> got(16);
  kernels_->narrow_bf16(values.data(), 16, got.data());
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(got[i], want[i]) << values[i];
}

std::string isa_name(const testing::TestParamInfo<CpuIsa>& info) {
  constexpr const char* kNames[] = {"Best", "Portable", "Avx2", "Avx512", "Avx512Bf16"};
  return kNames[static_cast<size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Isa, FastKernelsTest,
                         testing::Values(CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16),
                         isa_name);

}  // namespace
}  // namespace dyn::native

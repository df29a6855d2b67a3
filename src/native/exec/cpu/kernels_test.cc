#include "native/exec/cpu/kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

namespace dyn::native {
namespace {

std::vector<float> noise(size_t count, uint32_t seed, float width = 1.0F) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-width, width);
  std::vector<float> values(count);
  for (float& v : values) v = uniform(random);
  return values;
}

uint16_t to_bf16(float value) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
}

double f16_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double magnitude = exponent == 31  ? (mantissa == 0 ? std::numeric_limits<double>::infinity() : std::nan(""))
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// Random weights in a stored type, and what they mean.
struct StoredMatrix {
  StoredMatrix(DataType type, uint32_t rows, uint32_t cols, uint32_t seed)
      : bytes(size_t{rows} * cols * size_of(type)), values(size_t{rows} * cols) {
    const std::vector<float> source = noise(values.size(), seed);
    for (size_t i = 0; i < values.size(); ++i) {
      if (type == DataType::kF32) {
        values[i] = static_cast<double>(source[i]);
        std::memcpy(bytes.data() + 4 * i, &source[i], 4);
        continue;
      }
      // Any bits below the exponent of 1 will do for F16.
      const uint16_t bits = type == DataType::kBf16
                                ? to_bf16(source[i])
                                : static_cast<uint16_t>(std::bit_cast<uint32_t>(source[i]) % 0x3C00);
      values[i] =
          type == DataType::kBf16 ? static_cast<double>(std::bit_cast<float>(uint32_t{bits} << 16)) : f16_value(bits);
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
    matrix = {.data = bytes.data(), .type = type, .rows = rows, .cols = cols};
  }
  std::vector<std::byte> bytes;
  std::vector<double> values;
  Matrix matrix;
};

class KernelsTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    kernels_ = kernels_for(GetParam());
    if (kernels_ == nullptr) GTEST_SKIP() << "this machine lacks the instruction set";
  }
  const Kernels* kernels_ = nullptr;
};

TEST_P(KernelsTest, ProductsAreRightForEveryShapeOfTile) {
  for (DataType type : {DataType::kBf16, DataType::kF16, DataType::kF32}) {
    for (uint32_t cols : {16U, 48U, 144U}) {
      const StoredMatrix w(type, 37, cols, cols);
      const std::vector<float> bias = noise(37, 3);
      for (uint32_t m = 1; m <= 14; ++m) {
        const std::vector<float> x = noise(size_t{m} * (cols + 5), m);
        const std::vector<float> before = noise(size_t{m} * 40, m + 100);
        for (bool add : {false, true}) {
          std::vector<float> y = before;
          const GemmArgs args{.weights = &w.matrix,
                              .bias = bias.data(),
                              .x = x.data(),
                              .x_stride = cols + 5,
                              .m = m,
                              .y = y.data(),
                              .y_stride = 40,
                              .add = add};
          kernels_->gemm(args, 0, 16);
          kernels_->gemm(args, 16, 37);
          for (uint32_t i = 0; i < m; ++i) {
            for (uint32_t n = 0; n < 40; ++n) {
              const float got = y[i * 40 + n];
              if (n >= 37) {
                EXPECT_EQ(got, before[i * 40 + n]) << "written beyond the matrix";
                continue;
              }
              double want = static_cast<double>(bias[n]) + (add ? static_cast<double>(before[i * 40 + n]) : 0.0);
              for (uint32_t k = 0; k < cols; ++k)
                want += static_cast<double>(x[i * (cols + 5) + k]) * w.values[n * cols + k];
              ASSERT_NEAR(got, want, 1e-4) << to_string(type) << " m " << m << " row " << n << " k " << cols;
            }
          }
        }
      }
    }
  }
}

// The same bits for a row of x, however many others are multiplied and however the matrix is sliced.
TEST_P(KernelsTest, ProductsDoNotDependOnTheBatch) {
  constexpr uint32_t kRows = 53;
  constexpr uint32_t kCols = 576;
  constexpr uint32_t kMost = 13;
  const StoredMatrix w(DataType::kBf16, kRows, kCols, 1);
  const std::vector<float> x = noise(size_t{kMost} * kCols, 2);
  auto run = [&](uint32_t first, uint32_t m, uint32_t slice) {
    std::vector<float> y(size_t{m} * kRows);
    for (uint32_t from = 0; from < kRows; from += slice) {
      kernels_->gemm({.weights = &w.matrix,
                      .x = x.data() + size_t{first} * kCols,
                      .x_stride = kCols,
                      .m = m,
                      .y = y.data(),
                      .y_stride = kRows},
                     from, std::min(kRows, from + slice));
    }
    return y;
  };
  const std::vector<float> all = run(0, kMost, kRows);
  for (uint32_t m = 1; m <= kMost; ++m) {
    for (uint32_t slice : {1U, 8U, 13U}) {
      const std::vector<float> some = run(kMost - m, m, slice);
      ASSERT_EQ(0, std::memcmp(some.data(), all.data() + size_t{kMost - m} * kRows, some.size() * sizeof(float)))
          << "m " << m << " slice " << slice;
    }
  }
}

TEST_P(KernelsTest, WidensEveryHalfExactly) {
  std::vector<uint16_t> bits(1U << 16);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  std::vector<float> y(bits.size());
  Matrix m{
      .data = reinterpret_cast<const std::byte*>(bits.data()), .type = DataType::kF16, .rows = 1, .cols = 1U << 16};
  kernels_->widen(m, 0, y.data());
  for (size_t i = 0; i < bits.size(); ++i) {
    const double want = f16_value(bits[i]);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(y[i])) << i;
    } else {
      ASSERT_EQ(static_cast<double>(y[i]), want) << i;
    }
  }
  m.type = DataType::kBf16;
  kernels_->widen(m, 0, y.data());
  for (size_t i = 0; i < bits.size(); ++i) ASSERT_EQ(std::bit_cast<uint32_t>(y[i]), uint32_t{bits[i]} << 16);
}

TEST_P(KernelsTest, SiluIsExactToAFewUnits) {
  std::vector<float> gate;
  for (float g = -120.0F; g < 120.0F; g += 0.0137F) gate.push_back(g);
  gate.resize(gate.size() / 16 * 16);
  const std::vector<float> up(gate.size(), 1.0F);
  std::vector<float> y(gate.size());
  kernels_->silu_mul(gate.data(), up.data(), static_cast<uint32_t>(gate.size()), y.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const auto g = static_cast<double>(gate[i]);
    const double want = g / (1 + std::exp(-g));
    ASSERT_NEAR(y[i], want, std::abs(want) * 1e-6 + 1e-35) << g;
  }
}

TEST_P(KernelsTest, GeluIsExactToAFewUnits) {
  std::vector<float> gate;
  for (float g = -20.0F; g < 20.0F; g += 0.0037F) gate.push_back(g);
  gate.resize(gate.size() / 16 * 16);
  const std::vector<float> up(gate.size(), 2.0F);
  std::vector<float> y(gate.size());
  kernels_->gelu_mul(gate.data(), up.data(), static_cast<uint32_t>(gate.size()), y.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const auto g = static_cast<double>(gate[i]);
    const double want = g * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (g + 0.044715 * g * g * g)));
    ASSERT_NEAR(y[i], want, std::abs(want) * 1e-6 + 1e-6) << g;
  }
}

TEST_P(KernelsTest, NormsAndRotates) {
  const std::vector<float> x = noise(192, 1, 3);
  const std::vector<float> weight = noise(192, 2);
  std::vector<float> y(192);
  kernels_->rms_norm(x.data(), weight.data(), 1e-5F, 192, y.data());
  double squares = 0;
  for (float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
  const double scale = 1 / std::sqrt(squares / 192 + 1e-5);
  for (size_t i = 0; i < 192; ++i)
    EXPECT_NEAR(y[i], static_cast<double>(x[i]) * scale * static_cast<double>(weight[i]), 1e-5);

  std::vector<float> head = noise(32, 3);
  const std::vector<float> before = head;
  std::vector<float> cos(16);
  std::vector<float> sin(16);
  for (size_t i = 0; i < 16; ++i) {
    cos[i] = std::cos(static_cast<float>(i));
    sin[i] = std::sin(static_cast<float>(i));
  }
  kernels_->rotate(head.data(), cos.data(), sin.data(), 32);
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_NEAR(head[i], before[i] * cos[i] - before[i + 16] * sin[i], 1e-6);
    EXPECT_NEAR(head[i + 16], before[i + 16] * cos[i] + before[i] * sin[i], 1e-6);
  }
}

// Ragged visibility, scattered pages, and rubbish where nobody may look.
TEST_P(KernelsTest, AttentionIsRightAndIgnoresWhatIsNotVisible) {
  for (uint32_t per_page : {1U, 5U, 16U, 32U, 40U}) {
    constexpr uint32_t kDim = 48;
    constexpr uint32_t kTokens = 77;
    const uint32_t stride = (per_page + 15) / 16 * 16;
    const uint32_t pages = (kTokens + per_page - 1) / per_page;
    const size_t page_floats = size_t{kDim} * stride + size_t{kDim} * per_page;
    std::vector<float> pool(pages * page_floats, std::nanf(""));
    std::vector<int32_t> table(pages);
    for (uint32_t p = 0; p < pages; ++p) table[p] = static_cast<int32_t>(pages - 1 - p);
    const std::vector<float> k = noise(size_t{kTokens} * kDim, 1);
    const std::vector<float> v = noise(size_t{kTokens} * kDim, 2);
    for (uint32_t t = 0; t < kTokens; ++t) {
      float* page = pool.data() + static_cast<size_t>(table[t / per_page]) * page_floats;
      for (uint32_t d = 0; d < kDim; ++d) {
        page[d * stride + t % per_page] = k[t * kDim + d];
        page[size_t{kDim} * stride + size_t{t % per_page} * kDim + d] = v[t * kDim + d];
      }
    }
    for (const uint32_t window : {0U, 1U, 11U, 40U}) {
      for (uint32_t queries : {1U, 3U, 7U, 9U}) {
        const std::vector<float> q = noise(size_t{queries} * kDim, 5, 3);
        std::vector<int32_t> visible(queries);
        std::vector<int32_t> hidden(queries);
        for (uint32_t i = 0; i < queries; ++i) {
          visible[i] = static_cast<int32_t>(kTokens - 8 * (queries - 1 - i));
          if (window != 0) hidden[i] = std::max(0, visible[i] - static_cast<int32_t>(window));
        }
        std::vector<float> scores(size_t{queries} * stride);
        std::vector<float> sum(size_t{queries} * kDim);
        std::vector<float> max(queries);
        std::vector<float> weight(queries);
        kernels_->attention({.q = q.data(),
                             .queries = queries,
                             .head_dim = kDim,
                             .scale = 0.25F,
                             .visible = visible.data(),
                             .hidden = window == 0 ? nullptr : hidden.data(),
                             .pages = table.data(),
                             .page_begin = 0,
                             .page_end = pages,
                             .keys = pool.data(),
                             .values = pool.data() + size_t{kDim} * stride,
                             .page_stride = page_floats,
                             .tokens_per_page = per_page,
                             .token_stride = stride,
                             .scores = scores.data(),
                             .sum = sum.data(),
                             .max = max.data(),
                             .weight = weight.data()});
        for (uint32_t i = 0; i < queries; ++i) {
          std::vector<double> p(static_cast<size_t>(visible[i]));
          double total = 0;
          for (auto t = static_cast<size_t>(hidden[i]); t < p.size(); ++t) {
            double score = 0;
            for (uint32_t d = 0; d < kDim; ++d)
              score += static_cast<double>(q[i * kDim + d]) * static_cast<double>(k[t * kDim + d]);
            total += p[t] = std::exp(score * 0.25);
          }
          for (uint32_t d = 0; d < kDim; ++d) {
            double want = 0;
            for (size_t t = 0; t < p.size(); ++t) want += p[t] / total * static_cast<double>(v[t * kDim + d]);
            ASSERT_NEAR(sum[i * kDim + d] / weight[i], want, 1e-5)
                << "page of " << per_page << ", window " << window << ", query " << i;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, KernelsTest, testing::Values(CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512),
                         [](const auto& info) {
                           return info.param == CpuIsa::kPortable ? "Portable"
                                  : info.param == CpuIsa::kAvx2   ? "Avx2"
                                                                  : "Avx512";
                         });

}  // namespace
}  // namespace dyn::native

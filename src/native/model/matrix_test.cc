#include "native/model/matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <vector>

namespace dyn::native {
namespace {

std::vector<uint16_t> random_bf16(size_t count) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> value(-2.0F, 2.0F);
  std::vector<uint16_t> values(count);
  for (uint16_t& v : values) v = static_cast<uint16_t>(std::bit_cast<uint32_t>(value(random)) >> 16);
  return values;
}

float to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

struct Packed {
  Matrix matrix;
  std::vector<std::byte> memory;
};

Packed packed(MatrixLayout layout, uint32_t rows, uint32_t cols) {
  Packed p{.matrix = {.layout = layout, .rows = rows, .cols = cols}, .memory = {}};
  p.memory.resize(p.matrix.bytes());
  p.matrix.data = p.memory.data();
  return p;
}

const std::byte* bytes(const std::vector<uint16_t>& values, size_t from = 0) {
  return reinterpret_cast<const std::byte*>(values.data() + from);
}

TEST(Matrix, PackedBf16KeepsEveryBitInTheDocumentedPlace) {
  for (const auto& [rows, cols] : {std::pair{1U, 2U}, {16U, 32U}, {37U, 18U}, {64U, 6U}}) {
    const auto values = random_bf16(size_t{rows} * cols);
    Packed p = packed(MatrixLayout::kPackedBf16, rows, cols);
    EXPECT_EQ(p.memory.size() % 64, 0U);
    pack_rows(p.matrix, bytes(values), 0, rows);
    const auto* stored = reinterpret_cast<const uint16_t*>(p.memory.data());
    std::vector<float> row(cols);
    for (uint32_t r = 0; r < rows; ++r) {
      unpack_row(p.matrix, r, row.data());
      for (uint32_t c = 0; c < cols; ++c) {
        const size_t at = ((size_t{r / 16} * (cols / 2) + c / 2) * 16 + r % 16) * 2 + c % 2;
        ASSERT_EQ(stored[at], values[size_t{r} * cols + c]) << r << " " << c;
        ASSERT_EQ(row[c], to_float(values[size_t{r} * cols + c]));
      }
    }
    for (size_t at = size_t{rows} / 16 * 16 * cols; at < p.memory.size() / 2; ++at) {
      const size_t filling_row = at / (size_t{cols} * 16) * 16 + at / 2 % 16;
      if (filling_row >= rows) {
        ASSERT_EQ(stored[at], 0) << "filling";
      }
    }
  }
}

TEST(Matrix, AnyCutIntoRangesAndAnyThreadsGiveTheSame) {
  constexpr uint32_t kRows = 101;
  constexpr uint32_t kCols = 34;
  const auto values = random_bf16(size_t{kRows} * kCols);
  for (const MatrixLayout layout : {MatrixLayout::kRowMajor, MatrixLayout::kPackedBf16, MatrixLayout::kPackedInt8}) {
    Packed whole = packed(layout, kRows, kCols);
    pack_rows(whole.matrix, bytes(values), 0, kRows);
    Packed parts = packed(layout, kRows, kCols);
    std::vector<std::thread> threads;
    for (const auto& [begin, end] : {std::pair{0U, 3U}, {3U, 50U}, {50U, 51U}, {51U, 101U}}) {
      threads.emplace_back([&, first = begin, last = end] {
        pack_rows(parts.matrix, bytes(values, size_t{first} * kCols), first, last - first);
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(whole.memory, parts.memory) << to_string(layout);
  }
}

TEST(Matrix, Int8IsWithinHalfAStepOfItsRow) {
  constexpr uint32_t kRows = 35;
  constexpr uint32_t kCols = 64;
  auto values = random_bf16(size_t{kRows} * kCols);
  std::fill_n(values.begin() + size_t{3} * kCols, kCols, uint16_t{0});
  Packed p = packed(MatrixLayout::kPackedInt8, kRows, kCols);
  pack_rows(p.matrix, bytes(values), 0, kRows);
  std::vector<float> row(kCols);
  for (uint32_t r = 0; r < kRows; ++r) {
    float most = 0;
    for (uint32_t c = 0; c < kCols; ++c) most = std::max(most, std::fabs(to_float(values[size_t{r} * kCols + c])));
    unpack_row(p.matrix, r, row.data());
    EXPECT_FLOAT_EQ(p.matrix.scales()[r], most / 127);
    for (uint32_t c = 0; c < kCols; ++c) {
      EXPECT_NEAR(row[c], to_float(values[size_t{r} * kCols + c]), most / 127 * 0.5001F);
    }
  }
}

TEST(Matrix, WidensHalfPrecision) {
  const uint16_t f16[] = {0x3E00, 0xC000, 0x0001, 0x7C00, 0x8000};
  float to[5];
  widen(DataType::kF16, reinterpret_cast<const std::byte*>(f16), 5, to);
  EXPECT_EQ(to[0], 1.5F);
  EXPECT_EQ(to[1], -2.0F);
  EXPECT_EQ(to[2], 0x1p-24F);
  EXPECT_EQ(to[3], std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::signbit(to[4]));
}

TEST(Matrix, OnlyBf16OfEvenWidthIsPacked) {
  EXPECT_TRUE(can_have(MatrixLayout::kPackedBf16, DataType::kBf16, 6));
  EXPECT_FALSE(can_have(MatrixLayout::kPackedBf16, DataType::kBf16, 5));
  EXPECT_FALSE(can_have(MatrixLayout::kPackedInt8, DataType::kF16, 6));
  EXPECT_TRUE(can_have(MatrixLayout::kRowMajor, DataType::kF32, 5));
}

}  // namespace
}  // namespace dyn::native

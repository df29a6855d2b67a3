#include "native/model/matrix.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

namespace dyn::native {
namespace {

constexpr float kInt8Max = 127.0F;
constexpr float kRound = 0x1.8p23F;

float widen_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const int exponent = (bits >> 10) & 0x1F;
  const uint32_t mantissa = bits & 0x3FF;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const auto biased = static_cast<uint32_t>(exponent == 31 ? 255 : exponent + 112);
  return std::bit_cast<float>(sign | (biased << 23) | (mantissa << 13));
}

// Only those who fill a matrix write to it.
std::byte* writable(const std::byte* at) {
  return const_cast<std::byte*>(at);
}

// Four pairs of columns: 4 rows x 4 words transposed, as a panel wants them.
using Words = uint32_t __attribute__((vector_size(16)));

Words load_words(const std::byte* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

void store_words(std::byte* to, Words words) {
  std::memcpy(to, &words, sizeof words);
}

// Four rows, the first of them a multiple of four. `to`: their place in the panel's first line.
void pack_four_bf16(const std::byte* from, size_t cols, std::byte* to) {
  constexpr size_t kLine = kPanelRows * 2 * sizeof(uint16_t);
  const size_t row_bytes = cols * sizeof(uint16_t);
  size_t pair = 0;
  for (; pair + 4 <= cols / 2; pair += 4) {
    const std::byte* at = from + pair * 4;
    const Words a = load_words(at);
    const Words b = load_words(at + row_bytes);
    const Words c = load_words(at + 2 * row_bytes);
    const Words d = load_words(at + 3 * row_bytes);
    const Words ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    const Words ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Words cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const Words cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    store_words(to, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
    store_words(to + kLine, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
    store_words(to + 2 * kLine, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
    store_words(to + 3 * kLine, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
    to += 4 * kLine;
  }
  for (; pair < cols / 2; ++pair, to += kLine) {
    for (size_t row = 0; row < 4; ++row) std::memcpy(to + row * 4, from + row * row_bytes + pair * 4, 4);
  }
}

void pack_one_bf16(const std::byte* from, size_t cols, std::byte* to) {
  for (size_t pair = 0; pair < cols / 2; ++pair) {
    std::memcpy(to + pair * kPanelRows * 4, from + pair * 4, 4);
  }
}

void pack_bf16(const Matrix& matrix, const std::byte* from, uint32_t row_begin, uint32_t rows) {
  const uint32_t end = row_begin + rows;
  for (uint32_t row = row_begin; row < end;) {
    std::byte* to = writable(matrix.panel(row / kPanelRows)) + row % kPanelRows * 4;
    const bool four = row % 4 == 0 && end - row >= 4;
    four ? pack_four_bf16(from, matrix.cols, to) : pack_one_bf16(from, matrix.cols, to);
    row += four ? 4 : 1;
    from += matrix.row_bytes() * (four ? 4 : 1);
  }
}

void pack_int8(const Matrix& matrix, const std::byte* from, uint32_t row_begin, uint32_t rows) {
  std::vector<float> values(matrix.cols);
  for (uint32_t row = row_begin; row < row_begin + rows; ++row, from += matrix.cols * size_of(matrix.type)) {
    widen(matrix.type, from, values.size(), values.data());
    float most = 0.0F;
    for (const float value : values) most = std::max(most, std::fabs(value));
    const float scale = most / kInt8Max;
    const float inverse = scale > 0.0F ? 1.0F / scale : 0.0F;
    std::memcpy(writable(reinterpret_cast<const std::byte*>(matrix.scales() + row)), &scale, sizeof scale);
    std::byte* to = writable(matrix.panel(row / kPanelRows)) + row % kPanelRows * 2;
    for (uint32_t col = 0; col < matrix.cols; ++col) {
      // Adding the number leaves no fraction bits: rounds to nearest even. NaN becomes -127.
      const float rounded = (values[col] * inverse + kRound) - kRound;
      const float value = std::fmin(std::fmax(rounded, -kInt8Max), kInt8Max);
      to[size_t{col / 2} * kPanelRows * 2 + col % 2] = static_cast<std::byte>(static_cast<int8_t>(value));
    }
  }
}

}  // namespace

std::string_view to_string(MatrixLayout layout) {
  switch (layout) {
    case MatrixLayout::kRowMajor:
      return "row-major";
    case MatrixLayout::kPackedBf16:
      return "packed BF16";
    case MatrixLayout::kPackedInt8:
      return "packed INT8";
  }
  return "?";
}

bool can_have(MatrixLayout layout, DataType type, uint64_t cols) {
  switch (layout) {
    case MatrixLayout::kRowMajor:
      return true;
    case MatrixLayout::kPackedBf16:
    case MatrixLayout::kPackedInt8:
      return type == DataType::kBf16 && cols % 2 == 0;
  }
  return false;
}

void widen(DataType type, const std::byte* from, size_t count, float* to) {
  if (type == DataType::kF32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  const bool bf16 = type == DataType::kBf16;
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, from + 2 * i, sizeof bits);
    to[i] = bf16 ? std::bit_cast<float>(static_cast<uint32_t>(bits) << 16) : widen_f16(bits);
  }
}

void pack_rows(const Matrix& to, const std::byte* from, uint32_t row_begin, uint32_t rows) {
  switch (to.layout) {
    case MatrixLayout::kRowMajor:
      std::memcpy(writable(to.data) + row_begin * to.row_bytes(), from, rows * to.row_bytes());
      return;
    case MatrixLayout::kPackedBf16:
      return pack_bf16(to, from, row_begin, rows);
    case MatrixLayout::kPackedInt8:
      return pack_int8(to, from, row_begin, rows);
  }
}

void unpack_row(const Matrix& from, uint32_t row, float* to) {
  if (from.layout == MatrixLayout::kRowMajor) {
    return widen(from.type, from.data + row * from.row_bytes(), from.cols, to);
  }
  constexpr size_t kLine = size_t{2} * kPanelRows;
  const std::byte* panel = from.panel(row / kPanelRows);
  const size_t first = row % kPanelRows * size_t{2};
  if (from.layout == MatrixLayout::kPackedInt8) {
    const auto* values = reinterpret_cast<const int8_t*>(panel) + first;
    const float scale = from.scales()[row];
    for (uint32_t col = 0; col < from.cols; ++col) {
      to[col] = scale * static_cast<float>(values[col / 2 * kLine + col % 2]);
    }
    return;
  }
  const auto* values = reinterpret_cast<const uint16_t*>(panel) + first;
  for (uint32_t col = 0; col < from.cols; ++col) {
    to[col] = std::bit_cast<float>(static_cast<uint32_t>(values[col / 2 * kLine + col % 2]) << 16);
  }
}

}  // namespace dyn::native

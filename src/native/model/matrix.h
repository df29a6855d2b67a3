// Matrix: a weight matrix in host memory, row-major as checkpoints store it or packed for the fast kernels of the CPU.
//
//   Matrix m{.data = arena, .layout = MatrixLayout::kPackedBf16, .type = DataType::kBf16, .rows = 576, .cols = 1536};
//   pack_rows(m, stored, 0, 576);          // `stored`: row 0 of the checkpoint's tensor; any cut into ranges will do
//   unpack_row(m, 17, values);             // the 1536 values of row 17, widened
//
// Packed layout: panels of kPanelRows rows; within a panel the values of all its rows for two neighbouring columns
// stand together: [panel][cols / 2][kPanelRows][2]. In BF16 such a group is one line of 64 bytes: the operand of
// vdpbf16ps, a row of a B tile of TDPBF16PS, and 16 even and 16 odd columns by a shift and a mask for FMA. A product
// reads panels from front to back. The last panel is filled up with rows of zeros. INT8 has the same order with one
// byte a value; behind the panels follow the scales, F32, one a row: value = byte * scale, scale = largest magnitude of
// the row / 127. Packing BF16 keeps every bit.
//
// Ownership: Matrix is a view. Thread rules: pure functions; threads may pack different rows of one matrix at the same
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "native/model/safetensors.h"

namespace dyn::native {

enum class MatrixLayout : uint8_t { kRowMajor, kPackedBf16, kPackedInt8 };
std::string_view to_string(MatrixLayout layout);

inline constexpr uint32_t kPanelRows = 16;

struct Matrix {
  const std::byte* data = nullptr;
  MatrixLayout layout = MatrixLayout::kRowMajor;
  DataType type = DataType::kBf16;  // in the checkpoint; of the values in memory unless they are INT8
  uint32_t rows = 0;
  uint32_t cols = 0;

  [[nodiscard]] uint64_t row_bytes() const {  // on average where packed
    return cols * (layout == MatrixLayout::kPackedInt8 ? 1 : size_of(type));
  }
  [[nodiscard]] uint32_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  [[nodiscard]] uint64_t panel_bytes() const { return kPanelRows * row_bytes(); }
  // Of all values, scales and filling included.
  [[nodiscard]] uint64_t bytes() const {
    if (layout == MatrixLayout::kRowMajor) return rows * row_bytes();
    return panels() * (panel_bytes() + (layout == MatrixLayout::kPackedInt8 ? kPanelRows * sizeof(float) : 0));
  }
  [[nodiscard]] const std::byte* panel(uint32_t index) const { return data + index * panel_bytes(); }
  // Of a packed INT8 matrix, one a row.
  [[nodiscard]] const float* scales() const {
    return reinterpret_cast<const float*>(data + uint64_t{panels()} * panel_bytes());
  }
};

// Whether a matrix of this type and width may have the layout: packed ones are made of BF16, of an even width.
bool can_have(MatrixLayout layout, DataType type, uint64_t cols);

// Writes rows [row_begin, row_begin + rows) of `to`, whatever its layout; `from` holds these rows of to.type,
// row-major, at any address. The memory of a packed matrix must have been zero (filling). Const because only the view
// is.
void pack_rows(const Matrix& to, const std::byte* from, uint32_t row_begin, uint32_t rows);

// Values of one row as floats: to[cols].
void unpack_row(const Matrix& from, uint32_t row, float* to);

// `count` values of `type` to floats; exact.
void widen(DataType type, const std::byte* from, size_t count, float* to);

}  // namespace dyn::native

// Which path of the CPU executor runs (cpu_executor.h), and in which form weights must be loaded for it.
//
//   auto layout = layout_for(CpuPathChoice::kAuto, WeightDtype::kInt8);      // before loading
//   auto weights = load_weights(..., *layout);
//   if (auto done = check_loaded(choice, dtype, *weights); !done) ...        // after it
//
// Automatically the fast path runs for BF16 checkpoints, and the oracle's for F16 and F32, which it multiplies as they
// are. Thread rules: pure functions.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"
#include "native/model/weights.h"

namespace dyn::native {

enum class CpuPath : uint8_t { kOracle, kFast };
enum class CpuPathChoice : uint8_t { kAuto, kOracle, kFast };
enum class WeightDtype : uint8_t { kAuto, kInt8 };  // kAuto: as stored

inline CpuPath path_of(MatrixLayout layout) {
  return layout == MatrixLayout::kRowMajor ? CpuPath::kOracle : CpuPath::kFast;
}

inline std::string_view to_string(CpuPath path) {
  return path == CpuPath::kOracle ? "oracle" : "fast";
}

inline Result<MatrixLayout> layout_for(CpuPathChoice choice, WeightDtype dtype) {
  if (choice != CpuPathChoice::kOracle) {
    return dtype == WeightDtype::kInt8 ? MatrixLayout::kPackedInt8 : MatrixLayout::kPackedBf16;
  }
  if (dtype == WeightDtype::kInt8) return unsupported("INT8 weights need the CPU's fast path");
  return MatrixLayout::kRowMajor;
}

// Whether what was asked for is what the checkpoint allowed.
inline Result<void> check_loaded(CpuPathChoice choice, WeightDtype dtype, const Weights& weights) {
  if (weights.layout != MatrixLayout::kRowMajor) return {};
  if (dtype == WeightDtype::kInt8)
    return unsupported("INT8 weights are made of a BF16 checkpoint; this is another one");
  if (choice == CpuPathChoice::kFast) return unsupported("the CPU's fast path needs a BF16 checkpoint");
  return {};
}

}  // namespace dyn::native

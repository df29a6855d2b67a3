// What all loaders of a checkpoint share besides weight_targets.h: whether the files fit the configuration, and the
// values that dummy weights have.
//
//   auto type = check_checkpoint(config, checkpoint, targets);     // of all matrices
//   dummy_values(part, cols, 0, part.rows, values);
//
// Thread rules: pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "native/model/model_config.h"
#include "native/model/safetensors.h"
#include "native/model/weight_targets.h"

namespace dyn::native {

// The type of this name in a checkpoint, when executors can widen it.
std::optional<DataType> data_type(std::string_view dtype);

// Names, shapes and types against what the configuration asks for; gives the one type of all matrices.
Result<DataType> check_checkpoint(const ModelConfig& config, const Checkpoint& checkpoint,
                                  const std::vector<WeightTarget>& targets);

// BF16 values of rows [first, first + rows) of a part of a matrix: uniform, of variance 1 / cols, the same everywhere.
void dummy_values(const WeightPart& part, uint64_t cols, uint64_t first, uint64_t rows, uint16_t* to);

}  // namespace dyn::native

// What all loaders of a checkpoint share besides weight_targets.h: whether the files fit the configuration, and the
// values that dummy weights have.
//
//   auto type = check_checkpoint(config, checkpoint, targets);     // of all matrices
//   DummyValues(part, cols).read(0, part.rows, values);
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

// BF16 values of a part of a matrix without files: uniform, of variance 1 / cols, the same on every machine. A table of
// prime length is repeated, so that no two rows of a matrix are alike and the cost is that of copying.
class DummyValues {
 public:
  DummyValues(const WeightPart& part, uint64_t cols);
  // Rows [first, first + rows) of the part.
  void read(uint64_t first, uint64_t rows, uint16_t* to) const;

 private:
  uint64_t cols_;
  std::vector<uint16_t> table_;
};

}  // namespace dyn::native

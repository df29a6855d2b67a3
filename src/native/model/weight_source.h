// WeightSource: a model's weights, any rows of any matrix, read when they are asked for. For executors whose weights
// lie in another memory than the host's.
//
//   auto source = WeightSource::open(config, directory, LoadFormat::kSafetensors);    // everything is checked here
//   for (const WeightTarget& target : source->targets())
//     source->read(target, 0, target.rows(), buffer);      // matrices BF16 row-major, vectors F32
//
// Matrices of F16 and F32 checkpoints are rounded to the nearest BF16, ties to even. kDummy gives the values of
// load_weights(). Ownership: the source keeps its files mapped; `shape()` has sizes and no memory, the targets point
// into it. Thread rules: read() from any threads at once; the rest from one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "native/model/model_config.h"
#include "native/model/safetensors.h"
#include "native/model/weight_targets.h"
#include "native/model/weights.h"

namespace dyn::native {

class WeightSource {
 public:
  static Result<WeightSource> open(const ModelConfig& config, const std::string& directory, LoadFormat format);

  [[nodiscard]] const Weights& shape() const { return *shape_; }
  [[nodiscard]] const std::vector<WeightTarget>& targets() const { return targets_; }

  // Rows [first, first + rows) of a target of targets(); `to` holds them: 2 bytes an element of a matrix, 4 of a
  // vector.
  void read(const WeightTarget& target, uint64_t first, uint64_t rows, std::byte* to) const;

 private:
  WeightSource() = default;
  void read_part(const WeightTarget& target, const WeightPart& part, uint64_t first, uint64_t rows,
                 std::byte* to) const;

  std::unique_ptr<Weights> shape_;  // its address is in targets_
  std::vector<WeightTarget> targets_;
  std::optional<Checkpoint> checkpoint_;  // none: dummy weights
};

}  // namespace dyn::native

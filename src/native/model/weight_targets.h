// WeightTarget: one matrix or vector of a model, the tensors of a checkpoint that it is fused from, and its place in
// memory. What all loaders share.
//
//   Weights weights;
//   const std::vector<WeightTarget> targets = weight_targets(config, weights);
//   const WeightPlaces places = lay_out_weights(targets, DataType::kBf16, MatrixLayout::kPackedBf16, weights);
//   point_weights(targets, places, memory);
//   for (const WeightTarget& target : targets) fill(target);
//
// Ownership: targets point into the Weights they were made for, which must not move meanwhile. Thread rules: plain
// values; different targets may be filled by different threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "native/model/weights.h"

namespace dyn::native {

inline constexpr uint64_t kWeightAlignment = 64;

// One tensor of a checkpoint, and how many rows (or elements) it adds to what it is a part of.
struct WeightPart {
  std::string name;
  uint64_t rows = 0;
};

// A matrix or vector of the model with the tensors it is fused from, top to bottom.
struct WeightTarget {
  std::string name;  // of the one part; of fused ones as checkpoints name it that store them fused
  Matrix* matrix = nullptr;
  Vector* vector = nullptr;
  uint64_t cols = 1;
  float offset = 0.0F;       // added to a vector's values
  bool read_by_row = false;  // never multiplied with
  bool exact = false;        // not to be made INT8
  std::vector<WeightPart> parts;

  [[nodiscard]] uint64_t rows() const {
    uint64_t sum = 0;
    for (const WeightPart& part : parts) sum += part.rows;
    return sum;
  }
  [[nodiscard]] std::vector<uint64_t> shape(const WeightPart& part) const {
    return matrix != nullptr ? std::vector{part.rows, cols} : std::vector{part.rows};
  }
  // In memory, once laid out.
  [[nodiscard]] uint64_t bytes() const { return matrix != nullptr ? matrix->bytes() : rows() * sizeof(float); }
  // Only loaders write to weights, and only to a vector that has its place.
  [[nodiscard]] float* values() const { return const_cast<float*>(*vector); }
};

// Everything the model has, in the order it lies in memory and is read by a forward pass.
std::vector<WeightTarget> weight_targets(const ModelConfig& config, Weights& weights);

// Where everything lies from the beginning of the memory on.
struct WeightPlaces {
  std::vector<uint64_t> offsets;  // [target], multiples of kWeightAlignment
  uint64_t bytes = 0;             // of all
};

// Gives each matrix its layout and size, all but its address. `type`: of all matrices. A layout that they cannot have
// becomes row-major: weights.layout says what it is.
WeightPlaces lay_out_weights(const std::vector<WeightTarget>& targets, DataType type, MatrixLayout layout,
                             Weights& weights);
// Points everything into `memory`, places.bytes long.
void point_weights(const std::vector<WeightTarget>& targets, const WeightPlaces& places, const std::byte* memory);

}  // namespace dyn::native

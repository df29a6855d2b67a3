#include "native/model/weight_source.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <utility>

#include "native/model/weight_checks.h"

namespace dyn::native {
namespace {

constexpr uint64_t kValuesAtOnce = 4096;

// To the nearest BF16, ties to even; NaN stays NaN.
uint16_t round_to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFF'FFFF) > 0x7F80'0000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

void round_values(DataType type, const std::byte* from, uint64_t count, uint16_t* to) {
  float values[kValuesAtOnce];
  while (count > 0) {
    const uint64_t some = std::min(count, kValuesAtOnce);
    widen(type, from, some, values);
    for (uint64_t i = 0; i < some; ++i) to[i] = round_to_bf16(values[i]);
    from += some * size_of(type);
    to += some;
    count -= some;
  }
}

}  // namespace

Result<WeightSource> WeightSource::open(const ModelConfig& config, const std::string& directory, LoadFormat format) {
  WeightSource source;
  source.shape_ = std::make_unique<Weights>();
  source.targets_ = weight_targets(config, *source.shape_);
  if (format == LoadFormat::kDummy) return source;
  auto checkpoint = Checkpoint::open(directory);
  if (!checkpoint) return checkpoint.error();
  if (auto checked = check_checkpoint(config, *checkpoint, source.targets_); !checked)
    return checked.error().with_context(directory);
  source.checkpoint_ = std::move(*checkpoint);
  return source;
}

void WeightSource::read(const WeightTarget& target, uint64_t first, uint64_t rows, std::byte* to) const {
  const uint64_t row_bytes = target.cols * (target.matrix != nullptr ? sizeof(uint16_t) : sizeof(float));
  uint64_t part_begin = 0;
  for (const WeightPart& part : target.parts) {
    const uint64_t begin = std::max(first, part_begin);
    const uint64_t end = std::min(first + rows, part_begin + part.rows);
    if (begin < end) read_part(target, part, begin - part_begin, end - begin, to + (begin - first) * row_bytes);
    part_begin += part.rows;
  }
}

void WeightSource::read_part(const WeightTarget& target, const WeightPart& part, uint64_t first, uint64_t rows,
                             std::byte* to) const {
  const uint64_t count = rows * target.cols;
  if (!checkpoint_) {
    if (target.matrix != nullptr) {
      DummyValues(part, target.cols).read(first, rows, reinterpret_cast<uint16_t*>(to));
    } else {
      std::fill_n(reinterpret_cast<float*>(to), count, part.name.ends_with("norm.weight") ? 1.0F : 0.0F);
    }
    return;
  }
  const StoredTensor& stored = *checkpoint_->find(part.name);
  const DataType type = *data_type(stored.dtype);
  const Bytes bytes = stored.bytes.subspan(first * target.cols * size_of(type), count * size_of(type));
  if (target.matrix == nullptr) {
    auto* values = reinterpret_cast<float*>(to);
    widen(type, bytes.data(), count, values);
    for (uint64_t i = 0; i < count; ++i) values[i] += target.offset;
  } else if (type == DataType::kBf16) {
    std::memcpy(to, bytes.data(), bytes.size());
  } else {
    round_values(type, bytes.data(), count, reinterpret_cast<uint16_t*>(to));
  }
  checkpoint_->drop(bytes);
}

}  // namespace dyn::native

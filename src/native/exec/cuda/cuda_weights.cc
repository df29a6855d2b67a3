#include "native/exec/cuda/cuda_weights.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "base/threads.h"
#include "native/model/weight_source.h"

namespace dyn::native {
namespace {

// cuBLASLt's fastest kernels and 16-byte loads want aligned matrices.
constexpr uint64_t kAlignment = 256;
constexpr unsigned kMaxThreads = 8;  // each fills one buffer while the other is copied

struct Arena {
  CudaWeights weights;
  std::vector<uint64_t> offsets;  // of each target
};

uint64_t bytes_of(const WeightTarget& target) {
  return target.rows() * target.cols * (target.matrix != nullptr ? sizeof(uint16_t) : sizeof(float));
}

// Targets in the order of memory: as they come, but the experts of a layer first all gate-ups, then all downs.
Arena lay_out(const ModelConfig& config, const Weights& shape, const std::vector<WeightTarget>& targets) {
  Arena arena;
  arena.offsets.resize(targets.size());
  std::unordered_map<const void*, size_t> index;
  for (size_t i = 0; i < targets.size(); ++i)
    index[targets[i].matrix != nullptr ? static_cast<const void*>(targets[i].matrix) : targets[i].vector] = i;

  uint64_t end = 0;
  std::vector<bool> placed(targets.size());
  const auto place = [&](size_t i, uint64_t alignment) {
    end = (end + alignment - 1) / alignment * alignment;
    arena.offsets[i] = end;
    end += bytes_of(targets[i]);
    placed[i] = true;
    return arena.offsets[i];
  };
  const auto offset_of = [&](const auto* member) {
    const auto found = index.find(static_cast<const void*>(member));
    if (found == index.end()) return cuda::kNoTensor;
    return placed[found->second] ? arena.offsets[found->second] : place(found->second, kAlignment);
  };

  CudaWeights& weights = arena.weights;
  weights.embedding = offset_of(&shape.embedding);
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    const LayerWeights& from = shape.layers[i];
    cuda::LayerSpec& to = weights.layers.emplace_back();
    to.attention_norm = offset_of(&from.attention_norm);
    to.qkv = offset_of(&from.qkv);
    to.qkv_bias = offset_of(&from.qkv_bias);
    to.q_norm = offset_of(&from.q_norm);
    to.k_norm = offset_of(&from.k_norm);
    to.o = offset_of(&from.o);
    to.o_bias = offset_of(&from.o_bias);
    to.post_attention_norm = offset_of(&from.post_attention_norm);
    to.mlp_norm = offset_of(&from.mlp_norm);
    to.gate_up_bias = offset_of(&from.gate_up_bias);
    to.down_bias = offset_of(&from.down_bias);
    to.post_mlp_norm = offset_of(&from.post_mlp_norm);
    to.router = offset_of(&from.router);
    if (from.experts.empty()) {
      to.gate_up = offset_of(&from.gate_up);
      to.down = offset_of(&from.down);
    } else {
      const auto run = [&](Matrix ExpertWeights::* matrix) {
        const uint64_t begin = offset_of(&(from.experts.front().*matrix));
        // Without gaps: an expert's size alone says where it is.
        for (size_t e = 1; e < from.experts.size(); ++e) place(index.at(&(from.experts[e].*matrix)), 1);
        return begin;
      };
      to.gate_up = run(&ExpertWeights::gate_up);
      to.down = run(&ExpertWeights::down);
    }
    to.window = config.layer(i).window;
    to.rope = config.uses_local_rope(i) ? 1 : 0;
  }
  weights.final_norm = offset_of(&shape.final_norm);
  weights.lm_head = config.tie_embeddings ? weights.embedding : offset_of(&shape.lm_head);
  weights.bytes = (end + kAlignment - 1) / kAlignment * kAlignment;
  return arena;
}

// Some rows of one target: what goes through one buffer.
struct Piece {
  size_t target = 0;
  uint64_t first = 0;
  uint64_t rows = 0;
};

class Uploader {
 public:
  Uploader(const CudaDevice& device, const WeightSource& source, const std::vector<uint64_t>& offsets,
           const LoadProgress& progress)
      : device_(device), source_(source), offsets_(offsets), progress_(progress) {}

  Result<void> run() {
    cuda::ErrorText error{};
    void* buffer = nullptr;
    uint64_t capacity = 0;
    if (auto done = CudaDevice::check(device_.api().upload_buffer(device_.handle(), 0, &buffer, &capacity, &error),
                                      error, "weights");
        !done)
      return done;
    cut(capacity);
    const unsigned slots = device_.api().upload_slots(device_.handle());
    const unsigned threads = std::clamp(std::min({usable_cpus(), kMaxThreads, slots / 2}), 1U, slots);
    std::vector<std::thread> helpers;
    for (unsigned i = 1; i < threads; ++i) {
      helpers.emplace_back([this, i, threads, slots] { work(i, threads, slots); });
    }
    work(0, threads, slots);
    for (std::thread& helper : helpers) helper.join();
    if (error_) return *error_;
    if (auto done = CudaDevice::check(device_.api().finish_uploads(device_.handle(), &error), error, "weights"); !done)
      return done;
    if (progress_) progress_(total_, total_);
    return {};
  }

 private:
  void cut(uint64_t capacity) {
    for (size_t i = 0; i < source_.targets().size(); ++i) {
      const WeightTarget& target = source_.targets()[i];
      const uint64_t rows = target.rows();
      const uint64_t row_bytes = bytes_of(target) / rows;
      const uint64_t most = std::max<uint64_t>(1, capacity / row_bytes);
      for (uint64_t first = 0; first < rows; first += most)
        pieces_.push_back({.target = i, .first = first, .rows = std::min(most, rows - first)});
      total_ += bytes_of(target);
    }
  }

  // Worker `index` fills the slots index, index + threads, ... in turn.
  void work(unsigned index, unsigned threads, unsigned slots) {
    if (index > 0) set_thread_name("load weights");
    unsigned slot = index;
    for (size_t i = next_++; i < pieces_.size() && !failed_; i = next_++) {
      if (auto done = send(pieces_[i], slot); !done) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = done.error();
        failed_ = true;
        return;
      }
      slot = slot + threads < slots ? slot + threads : index;
      if (index == 0 && progress_ && done_ < total_) progress_(done_, total_);
    }
  }

  Result<void> send(const Piece& piece, unsigned slot) {
    const WeightTarget& target = source_.targets()[piece.target];
    const uint64_t row_bytes = bytes_of(target) / target.rows();
    cuda::ErrorText error{};
    void* buffer = nullptr;
    uint64_t capacity = 0;
    if (auto done = CudaDevice::check(device_.api().upload_buffer(device_.handle(), slot, &buffer, &capacity, &error),
                                      error, "weights");
        !done)
      return done;
    const uint64_t bytes = piece.rows * row_bytes;
    if (bytes > capacity) return internal_error("weights: a row does not fit into an upload buffer");
    source_.read(target, piece.first, piece.rows, static_cast<std::byte*>(buffer));
    const uint64_t offset = offsets_[piece.target] + piece.first * row_bytes;
    if (auto done =
            CudaDevice::check(device_.api().upload(device_.handle(), slot, offset, bytes, &error), error, "weights");
        !done)
      return done;
    done_ += bytes;
    return {};
  }

  const CudaDevice& device_;
  const WeightSource& source_;
  const std::vector<uint64_t>& offsets_;
  const LoadProgress& progress_;
  std::vector<Piece> pieces_;
  uint64_t total_ = 0;
  std::atomic<size_t> next_ = 0;
  std::atomic<uint64_t> done_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;
  std::optional<Error> error_;
};

}  // namespace

CudaWeights lay_out_cuda_weights(const ModelConfig& config) {
  Weights shape;
  const std::vector<WeightTarget> targets = weight_targets(config, shape);
  return lay_out(config, shape, targets).weights;
}

Result<CudaWeights> upload_weights(const CudaDevice& device, const ModelConfig& config, const std::string& directory,
                                   LoadFormat format, const LoadProgress& progress) {
  auto source = WeightSource::open(config, directory, format);
  if (!source) return source.error();
  Arena arena = lay_out(config, source->shape(), source->targets());
  cuda::ErrorText error{};
  if (auto done = CudaDevice::check(device.api().reserve_weights(device.handle(), arena.weights.bytes, &error), error,
                                    "weights");
      !done)
    return done.error();
  if (auto done = Uploader(device, *source, arena.offsets, progress).run(); !done) return done.error();
  return std::move(arena.weights);
}

}  // namespace dyn::native

// StepPacker: a StepPlan as one contiguous piece of memory that one copy brings to the device.
//
//   StepPacker packer(limits, vocab_size, graph_buckets(limits.max_batch_size));
//   StepPacker::staging_bytes(limits, max_seq_len);                  // how large the pinned buffers must be
//   auto staged = packer.pack(plan, slots, previous, flight, staging);   // offsets and counts for the module
//
// Decode rows (one token) come first, whatever the plan's order; samples keep it. A plan of decode rows alone is filled
// up to a bucket, the number of rows of a CUDA graph, with rows that have no context and keep nothing; in such a step
// everything but the block tables lies where the bucket alone says, because graphs name addresses. What does not fit
// into the room of a bucket (long lists of masked tokens) makes the step one without a graph, and a row whose lists are
// longer than the staging area allows is left to the host's sampler (CudaSlot::on_host).
//
// Pure but for the slots it marks. Ownership: nothing is kept of a plan. Thread rules: one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "native/exec/executor.h"
#include "native/exec/executor_abi.h"
#include "native/sample/sampler.h"

namespace dyn::native {

// A slot of the executor: what the device does not know of it.
struct CudaSlot {
  SamplerSlot sampler;     // kept up to date for slots with penalties and for those that the host samples
  uint32_t sequences = 0;  // that have entered so far: a step in flight may be of one before
  bool on_host = false;    // its rows are sampled by the host until another sequence enters
};

// Rows of CUDA graphs, ascending: 1, 2, 4, 8, 16, 24, ... in steps of 8 to 64, of 16 to 256, then of 32; the last is
// max_batch_size.
std::vector<uint32_t> graph_buckets(uint32_t max_batch_size);

class StepPacker {
 public:
  StepPacker(const ExecutorLimits& limits, uint32_t vocab_size, std::vector<uint32_t> buckets);

  static uint64_t staging_bytes(const ExecutorLimits& limits, uint32_t max_seq_len);

  // `previous`: tokens of the step before that the host has sampled itself, or kTokenOfPreviousStep where the device
  // knows them; by sample.
  Result<cuda::StagedStep> pack(const StepPlan& plan, std::span<CudaSlot> slots, std::span<const TokenId> previous,
                                uint32_t flight, std::span<std::byte> staging);

  // A step of padding rows: what a graph of the bucket is captured from.
  Result<cuda::StagedStep> pack_padding(uint32_t bucket, uint32_t flight, std::span<std::byte> staging);

  // Where a row of the plan packed last begins.
  [[nodiscard]] uint32_t first_token(uint32_t row) const { return first_token_[row]; }
  [[nodiscard]] const std::vector<uint32_t>& buckets() const { return buckets_; }

  // Alternatives that the device's sampler can give.
  static constexpr int32_t kMaxDeviceTop = cuda::kMaxTopLogprobs;

 private:
  struct Counts {
    uint32_t tokens = 0;
    uint32_t rows = 0;
    uint32_t samples = 0;
    uint32_t masks = 0;
    uint32_t biases = 0;
  };
  // Reserves the places of all arrays but page tables and starts of counts.
  bool lay_out(const Counts& counts, std::span<std::byte> staging, cuda::StagedStep& step);
  bool reserve(uint64_t bytes, std::span<std::byte> staging, cuda::StagedStep& step, uint32_t& offset);
  void mark_host_slots(const StepPlan& plan, std::span<CudaSlot> slots) const;
  Counts count(const StepPlan& plan, std::span<const CudaSlot> slots) const;
  uint32_t choose_bucket(const StepPlan& plan, const Counts& counts) const;
  void order_rows(const StepPlan& plan);
  void fill_rows(const StepPlan& plan, std::span<const TokenId> previous, cuda::StagedStep& step, std::byte* to) const;
  void fill_samples(const StepPlan& plan, std::span<const CudaSlot> slots, cuda::StagedStep& step, std::byte* to) const;
  bool fill_starts(const StepPlan& plan, std::span<const CudaSlot> slots, std::span<std::byte> staging,
                   cuda::StagedStep& step);

  const ExecutorLimits limits_;
  const uint32_t vocab_size_;
  const std::vector<uint32_t> buckets_;
  std::vector<uint32_t> order_;        // packed row -> row of the plan
  std::vector<uint32_t> first_token_;  // row of the plan -> its first packed token
};

}  // namespace dyn::native

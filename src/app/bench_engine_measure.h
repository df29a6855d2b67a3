// Steps of an executor under the clock: how long, how many bytes and how many operations.
//
//   auto run = measure_prompt(executor, config, 512, seconds);       // time to first token
//   auto run = measure_decode(executor, config, {.batch = 8, .prompt = 16, .steps = 512}, seconds);
//   run->tokens_per_s();  run->work.bytes / run->seconds;
//
// The clock runs while the executor computes and while a plan is put together (microseconds), not while sequences are
// set up. Prompts are repeatable pseudo-random tokens, sampling is greedy. Thread rules: the executor's thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "native/exec/executor.h"
#include "native/model/model_config.h"

namespace dyn::app::bench {

// What steps had to move and to compute at least.
struct StepWork {
  uint64_t bytes = 0;  // Executor::active_bytes
  uint64_t flops = 0;  // step_flops
};

struct EngineRun {
  uint32_t batch = 1;
  uint32_t prompt = 0;               // tokens of each sequence's prompt
  uint32_t step_tokens = 0;          // of a step, the largest
  uint64_t tokens = 0;               // computed: of prompts, or generated
  double seconds = 0;                // all steps together
  std::vector<uint32_t> samples_us;  // ascending: of each prompt until its first token, or of each decode step
  StepWork work;                     // of all steps together
  double own_cpus = 0;               // CPUs this process had on average; below the number of threads: it was held up
  double others_cpus = 0;            // CPUs that other processes kept busy meanwhile: noise

  [[nodiscard]] double per_second(uint64_t amount) const {
    return seconds > 0 ? static_cast<double>(amount) / seconds : 0;
  }
  [[nodiscard]] double tokens_per_s() const { return per_second(tokens); }
  [[nodiscard]] double per_sample(uint64_t amount) const {
    return samples_us.empty() ? 0 : static_cast<double>(amount) / static_cast<double>(samples_us.size());
  }
};

// Floating-point operations a step needs: two for each weight and token, the LM head for sampled rows alone, and causal
// attention (4 for each query element and visible token). Norms, rotation and activation are left out: below 1 %.
uint64_t step_flops(const native::ModelConfig& config, const native::StepPlan& plan);

// One prompt alone until its first token, in chunks of the executor's max_num_tokens, again and again for `seconds`, at
// least once.
Result<EngineRun> measure_prompt(native::Executor& executor, const native::ModelConfig& config, uint32_t tokens,
                                 double seconds);

struct DecodeShape {
  uint32_t batch = 1;
  uint32_t prompt = 1;  // tokens of each prompt; the context grows from here
  uint32_t steps = 1;   // at most
};

// A token of every sequence a step, until `seconds` or the steps are over; at least one step.
Result<EngineRun> measure_decode(native::Executor& executor, const native::ModelConfig& config,
                                 const DecodeShape& shape, double seconds);

// How `batch` sequences decode in a model of this context length: short prompts, and so many steps that the KV pool
// stays small with large batches.
DecodeShape decode_shape(uint32_t batch, uint32_t max_positions);

// Pages that the runs above need at most at a time.
uint64_t pages_needed(const std::vector<unsigned>& prompts, const std::vector<DecodeShape>& decodes,
                      uint32_t tokens_per_block);

// Memory of this process that is in RAM, now and at most so far.
struct ResidentMemory {
  uint64_t now_bytes = 0;
  uint64_t peak_bytes = 0;
};
ResidentMemory read_resident_memory();
// The peak counts from here on.
void forget_peak_memory();

// Who has the CPUs from construction on: this process, and all others.
class CpuShares {
 public:
  CpuShares();
  void write_to(double& own_cpus, double& others_cpus) const;

 private:
  uint64_t own_ns_;
  uint64_t machine_ns_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace dyn::app::bench

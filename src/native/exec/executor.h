// Executor: runs forward passes and samples. CPU now; the CUDA executor is a second one behind the same interface.
//
//   executor.enqueue(plan);            // may return before the work is done
//   StepResult& result = executor.collect();   // of the oldest plan not yet collected
//
// At most `pipeline_depth()` plans may be enqueued and not collected. With depth 2 a plan may name tokens of the plan
// before it (kTokenOfPreviousStep), so the host plans one step ahead of the device. Ownership: the caller owns plan and
// result buffers; a plan must live until it is collected. Thread rules: one thread (the engine thread).
#pragma once

#include <cstdint>

#include "base/result.h"
#include "native/exec/step_plan.h"

namespace dyn::native {

struct ExecutorLimits {
  uint32_t max_batch_size = 0;    // rows of a plan; also the number of slots
  uint32_t max_num_tokens = 0;    // tokens of a plan
  uint32_t tokens_per_block = 0;  // tokens of a KV page
  uint32_t num_pages = 0;         // of the KV pool
};

class Executor {
 public:
  virtual ~Executor() = default;

  [[nodiscard]] virtual const ExecutorLimits& limits() const = 0;
  [[nodiscard]] virtual uint32_t pipeline_depth() const = 0;

  // An error is fatal for the engine: the plan was wrong or the device failed.
  virtual Result<void> enqueue(const StepPlan& plan) = 0;
  virtual Result<void> collect(StepResult& result) = 0;

  // Bytes that a step must move at least (weights once, KV read and written): the roofline of benchmarks.
  [[nodiscard]] virtual uint64_t active_bytes(const StepPlan& plan) const = 0;
};

}  // namespace dyn::native

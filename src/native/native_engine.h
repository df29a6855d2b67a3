// The native engine: scheduler, paged KV cache and step loop of our own over an Executor.
//
//   auto engine = make_native_engine({.max_queue_size = 1024}, std::move(executor),
//                                    {.vocab_size = config.vocab_size, .max_seq_len = config.max_positions});
//   if (!engine) return engine.error();
//   (*engine)->start(observer);
//
// One turn of the engine thread: take commands, admit and plan a step, enqueue it, collect the oldest step in flight,
// check stop conditions, hand out one StepOutput. With an executor of pipeline depth 2 the next step is planned while
// the device works on the one before; a row whose request turns out to have ended is dropped when collected. A request
// whose logits are not finite ends with an error, the others go on; an executor that fails is the end of the engine.
// load_engine.h makes everything from a model directory. Ownership: the engine owns the executor. Thread rules: those
// of Engine; the executor is used on the engine thread, and before it on the one that calls start().
#pragma once

#include <memory>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/stepper.h"
#include "native/exec/executor.h"
#include "native/sched/scheduler.h"

namespace dyn::native {

struct NativeEngineOptions {
  CapacityPolicy capacity_policy = CapacityPolicy::kGuaranteedNoEvict;
  bool enable_block_reuse = true;
  bool enable_partial_reuse = true;  // also of the head of a block, by a copy
  bool record_kv_events = true;      // StepOutput::kv_events is filled
  uint32_t max_queue_size = 4096;    // requests waiting beside those that run
  uint32_t max_logprobs = 20;        // alternatives a request may ask for
  bool warm_up = true;               // start() runs a request, so that the first user does not pay for cold memory
};

// What the engine must know of a model.
struct ModelFacts {
  uint32_t vocab_size = 0;
  uint32_t max_seq_len = 0;     // prompt and answer; lowered to what the whole KV pool can hold
  uint32_t window = 0;          // how far back any layer looks; 0: to the start
  uint32_t long_rope_from = 0;  // longer sequences have other rotary angles from their start on; 0: never
};

Result<std::unique_ptr<engine::Engine>> make_native_engine(const NativeEngineOptions& options,
                                                           std::unique_ptr<Executor> executor, const ModelFacts& model);

// The engine without its thread, to be driven by hand in tests and benchmarks.
Result<std::unique_ptr<engine::Stepper>> make_native_stepper(const NativeEngineOptions& options,
                                                             std::unique_ptr<Executor> executor,
                                                             const ModelFacts& model);

}  // namespace dyn::native

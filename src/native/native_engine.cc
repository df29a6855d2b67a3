#include "native/native_engine.h"

#include <fmt/format.h>

#include <utility>

#include "engine/stepped_engine.h"
#include "native/loop/native_stepper.h"

namespace dyn::native {
namespace {

Result<void> check(const Executor& executor, const ModelFacts& model) {
  const ExecutorLimits& limits = executor.limits();
  if (limits.max_batch_size == 0) return invalid_argument("max_batch_size must be at least 1");
  if (limits.max_num_tokens < limits.max_batch_size) {
    return invalid_argument(
        fmt::format("max_num_tokens ({}) must not be below max_batch_size ({}): each running "
                    "request needs a token in a step",
                    limits.max_num_tokens, limits.max_batch_size));
  }
  if (limits.tokens_per_block == 0) return invalid_argument("tokens_per_block must be at least 1");
  if (uint64_t{limits.num_pages} * limits.tokens_per_block < 2) {
    return invalid_argument("the KV cache has no room for a prompt and an answer");
  }
  if (model.vocab_size == 0) return invalid_argument("the model has no vocabulary");
  if (model.max_seq_len < 2) return invalid_argument("max_seq_len must be at least 2");
  const uint32_t depth = executor.pipeline_depth();
  if (depth < 1 || depth > 2) return internal_error(fmt::format("a pipeline depth of {} is not 1 or 2", depth));
  return {};
}

}  // namespace

Result<std::unique_ptr<engine::Stepper>> make_native_stepper(const NativeEngineOptions& options,
                                                             std::unique_ptr<Executor> executor,
                                                             const ModelFacts& model) {
  if (auto checked = check(*executor, model); !checked) return checked.error();
  return std::unique_ptr<engine::Stepper>(std::make_unique<NativeStepper>(options, std::move(executor), model));
}

Result<std::unique_ptr<engine::Engine>> make_native_engine(const NativeEngineOptions& options,
                                                           std::unique_ptr<Executor> executor,
                                                           const ModelFacts& model) {
  auto stepper = make_native_stepper(options, std::move(executor), model);
  if (!stepper) return stepper.error();
  return std::unique_ptr<engine::Engine>(std::make_unique<engine::SteppedEngine>(
      std::move(*stepper), engine::SteppedEngineOptions{.max_queue_size = options.max_queue_size}));
}

}  // namespace dyn::native

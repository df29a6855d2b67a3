// `dynamo-trtllm serve`: the composition root. Builds engine, request plane, discovery and status server from a
// WorkerConfig, publishes the model once the engine has answered, and runs until a signal.
//
//   return serve(config);      // the exit status
//
// Exit status: 0 after an orderly end, 1 when the engine died or the end had to be forced, 2 when the configuration
// cannot be served; then nothing was registered. Thread rules: the main thread, once a process.
#pragma once

#include "app/options/worker_config.h"

namespace dyn::app {

int serve(const WorkerConfig& config);

}  // namespace dyn::app

// Probe: a tiny request of the worker's own through the engine: the warm-up before a model is published, and the
// canary.
//
//   auto ok = run_probe(engine, dispatcher, {.bos = 1, .timeout = 60s});
//
// It asks for one greedy token under a cache salt of its own, so that it never meets real prompts' KV blocks. Thread
// rules: run_probe() blocks its caller, never call it on a net loop or the engine thread; start_probe() may be called
// anywhere.
#pragma once

#include <chrono>
#include <functional>

#include "base/result.h"
#include "engine/engine.h"
#include "worker/dispatcher.h"

namespace dyn::worker {

struct ProbeOptions {
  llm::TokenId bos = 1;
  std::chrono::milliseconds timeout{60'000};
};

// `done` is called once, on the engine thread or, when the engine refuses the request, by this call.
engine::RequestId start_probe(engine::Engine& engine, Dispatcher& dispatcher, const ProbeOptions& options,
                              std::function<void(Result<void>)> done);

Result<void> run_probe(engine::Engine& engine, Dispatcher& dispatcher, const ProbeOptions& options);

}  // namespace dyn::worker

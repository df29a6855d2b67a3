// The engine's counters and the dispatcher's as Prometheus series.
//
//   export_engine_metrics(registry, engine, dispatcher, {{"model", "tiny"}});
//
// Values are read when the page is asked for; nothing is added to a step. Facts: dynamo_component_total_blocks and
// dynamo_component_gpu_cache_usage_percent of Dynamo 1.0+; series of our own begin with dynamo_trtllm_. Ownership:
// engine and dispatcher must outlive the registry's last exposition. Thread rules: call once, at start-up.
#pragma once

#include "base/metrics.h"
#include "engine/engine.h"
#include "worker/dispatcher.h"

namespace dyn::worker {

void export_engine_metrics(metrics::Registry& registry, const engine::Engine& engine, const Dispatcher& dispatcher,
                           const metrics::Labels& labels);

}  // namespace dyn::worker

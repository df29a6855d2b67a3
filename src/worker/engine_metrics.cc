#include "worker/engine_metrics.h"

#include <memory>

namespace dyn::worker {

namespace {

// Brings a counter up to a total that is counted elsewhere.
void raise_to(metrics::Counter& counter, uint64_t total) {
  const double missing = static_cast<double>(total) - counter.value();
  if (missing > 0) counter.increment(missing);
}

}  // namespace

void export_engine_metrics(metrics::Registry& registry, const engine::Engine& engine, const Dispatcher& dispatcher,
                           const metrics::Labels& labels) {
  auto& total_blocks = registry.gauge("dynamo_component_total_blocks", "Total number of KV cache blocks", labels);
  auto& usage =
      registry.gauge("dynamo_component_gpu_cache_usage_percent", "KV cache usage as a fraction (0.0-1.0)", labels);
  auto& used_blocks = registry.gauge("dynamo_trtllm_kv_blocks_used", "KV cache blocks held by requests", labels);
  auto& running = registry.gauge("dynamo_trtllm_requests_running", "Requests scheduled in the engine", labels);
  auto& waiting = registry.gauge("dynamo_trtllm_requests_waiting", "Requests queued in the engine", labels);
  auto& open = registry.gauge("dynamo_trtllm_requests_open", "Requests whose response stream is open", labels);
  auto& steps = registry.counter("dynamo_trtllm_steps_total", "Engine steps", labels);
  auto& generated = registry.counter("dynamo_trtllm_generated_tokens_total", "Tokens generated", labels);
  auto& prompt = registry.counter("dynamo_trtllm_prompt_tokens_total", "Prompt tokens processed or reused", labels);
  auto& cached =
      registry.counter("dynamo_trtllm_prompt_tokens_cached_total", "Prompt tokens whose KV was reused", labels);
  auto& finished = registry.counter("dynamo_trtllm_requests_finished_total", "Requests finished by the engine", labels);
  auto& aborted = registry.counter("dynamo_trtllm_requests_aborted_total", "Requests aborted in the engine", labels);
  auto& preempted =
      registry.counter("dynamo_trtllm_preemptions_total", "Sequences preempted for lack of KV blocks", labels);
  const auto ending = [&](const char* how) -> metrics::Counter& {
    auto with_end = labels;
    with_end["end"] = how;
    return registry.counter("dynamo_trtllm_streams_total", "Response streams by how they ended", with_end);
  };
  auto& end_finished = ending("finished");
  auto& end_rejected = ending("rejected");
  auto& end_cancelled = ending("cancelled");
  auto& end_too_slow = ending("too_slow");
  auto& end_abandoned = ending("abandoned");

  registry.on_collect([&] {
    const engine::Stats stats = engine.stats();
    total_blocks.set(static_cast<double>(stats.kv_blocks_total));
    used_blocks.set(static_cast<double>(stats.kv_blocks_used));
    usage.set(stats.kv_blocks_total == 0
                  ? 0.0
                  : static_cast<double>(stats.kv_blocks_used) / static_cast<double>(stats.kv_blocks_total));
    running.set(stats.running);
    waiting.set(stats.waiting);
    open.set(static_cast<double>(dispatcher.open_requests()));
    raise_to(steps, stats.steps);
    raise_to(generated, stats.tokens_generated);
    raise_to(prompt, stats.prompt_tokens);
    raise_to(cached, stats.prompt_tokens_cached);
    raise_to(finished, stats.requests_finished);
    raise_to(aborted, stats.requests_aborted);
    raise_to(preempted, stats.preemptions);
    const auto& streams = dispatcher.counters();
    raise_to(end_finished, streams.finished);
    raise_to(end_rejected, streams.rejected);
    raise_to(end_cancelled, streams.cancelled - streams.too_slow);
    raise_to(end_too_slow, streams.too_slow);
    raise_to(end_abandoned, streams.abandoned);
  });
}

}  // namespace dyn::worker

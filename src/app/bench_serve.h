// `dynamo-trtllm bench serve`: load on an OpenAI endpoint, and what its clients see: latencies, throughput, failures.
//
//   return run_bench_serve(args);   // args: what stands behind "bench serve"
//
// Any server of streamed chat or completions will do. Thread rules: the main thread; a thread it starts ends before it
// returns. SIGINT and SIGTERM meanwhile cancel what is under way; what was measured is reported.
#pragma once

#include <span>
#include <string_view>

namespace dyn::app::bench {

// The exit status: 0 done, 1 a request failed or a threshold was missed, 2 wrong arguments, 130 interrupted.
int run_bench_serve(std::span<const std::string_view> args);

}  // namespace dyn::app::bench

// `dynamo-trtllm bench engine`: the native engine's CPU executor, beside what this machine can do at most.
//
//   return run_bench_engine(args);   // args: what stands behind "bench engine"
//
// No scheduler, no network: steps are given to the executor directly. Ceilings (read bandwidth, multiply-add rate) are
// measured in the same run with as many threads. Thread rules: the main thread; threads it starts end before it
// returns.
#pragma once

#include <span>
#include <string_view>

namespace dyn::app::bench {

// The exit status: 0 done, 1 a measurement failed (no model, no memory), 2 wrong arguments.
int run_bench_engine(std::span<const std::string_view> args);

}  // namespace dyn::app::bench

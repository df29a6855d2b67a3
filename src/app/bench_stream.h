// `dynamo-trtllm bench ...`: measurements of the token path and of the native engine.
//
//   bench stream   mock engine -> worker -> TCP -> sink, beside a bare send(2) loop of the same frames
//   bench sink     the sink alone, against any worker that is registered in a file store
//   bench engine   the native engine's executor beside what the machine can do; see bench_engine.h
//
// Must be called before the process starts a thread: senders are forked. Thread rules: the main thread only.
#pragma once

#include <span>
#include <string_view>

namespace dyn::app::bench {

// `args`: what stands behind "bench". Returns the exit status: 0 done, 1 a run failed or a --max-... limit was passed,
// 2 wrong arguments.
int run_bench(std::span<const std::string_view> args);

}  // namespace dyn::app::bench

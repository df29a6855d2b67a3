// The whole native engine under load, without a network: scheduler, KV cache and sampler included; and its start.
//
//   auto report = measure_engine({.model = "/models/m"}, {{.sequences = 8, .input = 128, .output = 128}}, seconds);
//   report->runs[0].output_tokens_per_s();
//
// A load is that many requests submitted together, again and again until the seconds are over, at least once; the
// prompts of all requests differ, so that no prefix is found in the cache. Greedy, no stop token. Start-up times are
// those of this process: the model's files may be in the page cache or not. Thread rules: any one thread; the engine's
// thread has ended when it returns.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "app/bench_engine_measure.h"
#include "base/result.h"
#include "native/load_engine.h"

namespace dyn::app::bench {

struct EngineLoad {
  uint32_t sequences = 1;
  uint32_t input = 1;   // tokens of each prompt
  uint32_t output = 1;  // of each answer
};

// "8:128:64,1:512:1": sequences, input, output.
Result<std::vector<EngineLoad>> parse_engine_loads(std::string_view name, std::string_view text);

struct EngineLoadRun {
  EngineLoad load;
  uint32_t rounds = 0;
  double seconds = 0;  // of all rounds, from the first submission to the last answer's end
  uint64_t output_tokens = 0;
  uint64_t input_tokens = 0;
  std::vector<uint32_t> ttft_us;  // ascending, of each request
  std::vector<uint32_t> tpot_us;  // ascending, of each request with more than one token
  double own_cpus = 0;
  double others_cpus = 0;

  [[nodiscard]] double output_tokens_per_s() const {
    return seconds > 0 ? static_cast<double>(output_tokens) / seconds : 0;
  }
  [[nodiscard]] double total_tokens_per_s() const {
    return seconds > 0 ? static_cast<double>(output_tokens + input_tokens) / seconds : 0;
  }
};

struct EngineLevelReport {
  double load_s = 0;          // config, weights, KV pool, threads
  double warm_up_s = 0;       // until requests are taken
  double first_token_s = 0;   // of one more prompt of a few tokens, alone
  uint64_t weight_bytes = 0;  // as they are in memory
  uint64_t kv_pool_tokens = 0;
  uint64_t kv_pool_bytes = 0;
  ResidentMemory resident;  // after all runs; the peak is that of this engine alone where the kernel can tell
  std::vector<EngineLoadRun> runs;
};

// Sizes of batch and KV pool in `options` are set as the loads need them.
Result<EngineLevelReport> measure_engine(native::LoadOptions options, const std::vector<EngineLoad>& loads,
                                         double seconds);

}  // namespace dyn::app::bench

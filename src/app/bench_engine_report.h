// Results of `bench engine`: a table for people, JSON for machines, Markdown for the documentation. What was not
// measured is left out.
//
//   EngineReport report{.model = "...", .ceilings = ...};
//   std::puts((json ? to_json(report) : to_table(report)).c_str());
//
// Thread rules: plain values and functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/bench_engine_ceilings.h"
#include "app/bench_engine_cost.h"
#include "app/bench_engine_gemm.h"
#include "app/bench_engine_loop.h"
#include "app/bench_engine_measure.h"

namespace dyn::app::bench {

// From nothing to the first token, each part by itself.
struct EngineStart {
  double config_s = 0;
  double weights_s = 0;
  double executor_s = 0;     // buffers, KV pool, threads
  double first_token_s = 0;  // of a prompt of first_prompt tokens, nothing warm
  uint32_t first_prompt = 0;
};

struct EngineReport {
  std::string model;
  std::string architecture;
  bool dummy_weights = false;
  std::string path;  // of the executor, and its weights' layout
  std::string isa;   // of its kernels
  unsigned threads = 0;
  EngineStart start;
  uint64_t weight_bytes = 0;
  uint64_t kv_pool_bytes = 0;
  uint64_t kv_pool_tokens = 0;
  uint64_t loaded_resident_bytes = 0;  // after the weights were loaded
  ResidentMemory resident;             // after all runs
  Ceilings ceilings;
  std::vector<GemmPeak> gemm;  // of the executor's path; empty when it was not measured
  std::vector<EngineRun> prompts;
  std::vector<EngineRun> decodes;
  std::vector<CostPoint> cost;
  std::optional<EngineLevelReport> engine;  // the whole engine under load
};

std::string to_table(const EngineReport& report);
std::string to_json(const EngineReport& report);
// Tables as docs/benchmarks.md has them.
std::string to_markdown(const EngineReport& report);

}  // namespace dyn::app::bench

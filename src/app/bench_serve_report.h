// Results of `bench serve`: a table for people, JSON for machines, and whether they are good enough.
//
//   std::puts((json ? serve_json(run, result) : serve_table(run, result)).c_str());
//   for (const std::string& line : missed(result, thresholds)) ...
//
// Names are those of vLLM's benchmark (`vllm bench serve`, JSON of --save-result): ttft, tpot, itl, e2el, throughputs;
// so that one reader serves both. Thread rules: plain values and functions.
#pragma once

#include <string>
#include <vector>

#include "app/bench_serve_load.h"

namespace dyn::app::bench {

// What was asked for.
struct ServeRun {
  std::string url;
  std::string model;
  std::string endpoint_type;
  std::string dataset;  // its path; empty: random prompts
  LengthRange input;
  LengthRange output;
  unsigned max_concurrency = 0;
  double request_rate = 0;  // 0: none
  uint64_t seed = 0;
};

struct ServeRates {
  double requests_per_s = 0;
  double output_tokens_per_s = 0;
  double total_tokens_per_s = 0;  // input and output
};
ServeRates rates_of(const LoadResult& result);

struct ServeThresholds {
  double max_p99_ttft_ms = 0;  // 0: none
  double max_p99_itl_ms = 0;
  double max_p99_e2el_ms = 0;
  double min_output_throughput = 0;
  uint64_t max_failed = 0;
};
// One line for each threshold that the result misses.
std::vector<std::string> missed(const LoadResult& result, const ServeThresholds& thresholds);

std::string serve_table(const ServeRun& run, const LoadResult& result);
std::string serve_json(const ServeRun& run, const LoadResult& result);

}  // namespace dyn::app::bench

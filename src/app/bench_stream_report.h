// Results of stream benchmarks: what one run of a sender gave, medians over rounds, a table for people and JSON for
// machines.
//
//   StreamResult row{.streams = 256, .step_ms = 10.24};
//   row.worker.push_back(summarize(report));
//   row.bare.push_back(summarize(other));
//   std::puts(to_table({row}).c_str());
//
// Thread rules: plain values and functions.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "app/bench_stream_sink.h"

namespace dyn::app::bench {

// One window of one sender.
struct RunSummary {
  double cpu_us_per_token = 0;  // of the process under test
  double user_share = 0;        // of its CPU time, 0 ... 1
  double tokens_per_s = 0;
  double bytes_per_token = 0;
  double switches_per_ktoken = 0;  // context switches per 1,000 tokens, both kinds
  double involuntary_per_ktoken = 0;
  double p50_us = 0;  // hand-out to sink; 0 without stamps
  double p99_us = 0;
  double p999_us = 0;
  double max_us = 0;
  double sink_cpu_us_per_token = 0;
  double others_cpus = 0;  // CPUs busy with other processes
  uint64_t tokens = 0;
  std::vector<std::pair<std::string, double>> threads;  // CPU us per token by thread name
};

RunSummary summarize(const SinkReport& report);

// Member-wise medians; tokens are added up; threads are those of the first run.
RunSummary median_of(const std::vector<RunSummary>& runs);

struct StreamResult {
  unsigned streams = 0;
  double step_ms = 0;
  std::vector<RunSummary> worker;  // one a round
  std::vector<RunSummary> bare;    // one a round, measured next to it; empty when not asked for

  // Worker over bare send loop: the median of the rounds' own ratios, so that slow drift of the machine cancels out.
  [[nodiscard]] double ratio() const;
};

std::string to_table(const std::vector<StreamResult>& results);
std::string to_json(const std::vector<StreamResult>& results);

// One run of `bench sink`.
std::string sink_table(const SinkReport& report);
std::string sink_json(const SinkReport& report);

// "AMD EPYC, 2 CPUs, Linux 6.18": what numbers must be read with.
std::string machine();

}  // namespace dyn::app::bench

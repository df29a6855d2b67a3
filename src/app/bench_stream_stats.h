// What a benchmark measures of a process from outside, and order statistics.
//
//   auto before = read_process_usage(pid);
//   ...
//   auto after = read_process_usage(pid);
//   double cpu_us = (after->cpu_ns - before->cpu_ns) / 1e3;
//   double p99 = percentile(sorted, 0.99);
//
// Every process under test (this worker, a bare send loop, workers of other stacks) is measured in this one way: the
// kernel's CPU clock of the process (user + system, threads that have ended included, nanoseconds), and context
// switches summed over its threads. Thread rules: plain functions.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace dyn::app::bench {

struct ThreadUsage {
  int tid = 0;
  std::string name;
  uint64_t cpu_ns = 0;
};

struct ProcessUsage {
  uint64_t cpu_ns = 0;
  uint64_t user_ns = 0;  // of cpu_ns, to the kernel's tick (10 ms)
  uint64_t system_ns = 0;
  uint64_t voluntary_switches = 0;
  uint64_t involuntary_switches = 0;
  std::vector<ThreadUsage> threads;
};

Result<ProcessUsage> read_process_usage(pid_t pid);

// after - before; threads are matched by id, those that used nothing are left out, the busiest come first.
ProcessUsage usage_between(const ProcessUsage& before, const ProcessUsage& after);

// CPU time that all processes of the machine have used since boot, without idle and stolen time.
uint64_t read_machine_cpu_ns();

// Nearest rank; `sorted` ascending, 0 when empty.
double percentile(const std::vector<uint32_t>& sorted, double q);
double median(std::vector<double> values);

}  // namespace dyn::app::bench

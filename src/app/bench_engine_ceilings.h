// What this machine can do at most, measured: bytes read from memory a second and fp32 multiply-adds a second, with as
// many threads as the executor has.
//
//   auto ceilings = measure_ceilings({.threads = 2, .isa = CpuIsa::kAvx2, .seconds = 0.5});
//   double share = rate / ceilings->read_bytes_per_s;
//
// Both are the best of many passes of about a millisecond: one that other processes disturbed is no ceiling. Reading
// goes round a buffer several times as large as the last cache, in huge pages where the kernel gives them, as weights
// are. Multiply-adds
// run in registers alone, once for each instruction set this machine has; the portable one multiplies and adds apart,
// as the portable kernels do; avx512_bf16 multiplies BF16, two products an addition. A multiply-add counts as two
// operations. Thread rules: any one thread; the threads it starts have ended when it returns.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "native/exec/cpu/cpu_executor.h"

namespace dyn::app::bench {

struct CeilingOptions {
  unsigned threads = 1;
  native::CpuIsa isa = native::CpuIsa::kBest;  // of the executor; this machine must have it
  std::string kernels;                         // whose rate is flops_per_s: "avx512_bf16"; empty: those of `isa`
  double seconds = 0.5;                        // for reading, and for each instruction set
};

struct Ceilings {
  unsigned threads = 0;
  double cpus = 0;  // this process had in the best passes: of reading and the executor's instruction set, the lower
  uint64_t buffer_bytes = 0;
  double read_bytes_per_s = 0;
  double flops_per_s = 0;                           // with the executor's kernels
  std::vector<std::pair<std::string, double>> all;  // of every instruction set here, by name
};

// A pass with at least this share of its CPUs counts as undisturbed.
inline constexpr double kUndisturbed = 0.85;

Result<Ceilings> measure_ceilings(const CeilingOptions& options);

// The size of the buffer to read: four times the last cache, within 256 MiB and 1 GiB, not more than a quarter of the
// free memory.
uint64_t read_buffer_bytes(uint64_t last_cache_bytes, uint64_t free_bytes);

}  // namespace dyn::app::bench

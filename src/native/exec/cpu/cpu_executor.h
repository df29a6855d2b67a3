// The CPU executor. It runs on any x86-64, with the best instructions the machine has, and on one of two paths:
//
// - oracle: fp32 activations and fp32 KV cache over row-major weights as stored; what every other executor is compared
//   with.
// - fast: packed weights (BF16, or INT8 with scales a row), BF16 activations where the machine multiplies BF16, a BF16
// KV
//   cache. Sums, residuals and softmax are F32 as well.
//
// The layout of the weights says which.
//
//   ExecutorLimits limits{.max_batch_size = 64, .max_num_tokens = 2048, .tokens_per_block = 32, .num_pages = 1000};
//   auto executor = make_cpu_executor(config, std::move(weights), limits, {.threads = 0});
//   executor->enqueue(plan);  executor->collect(result);
//
// Batch-invariant, both paths: what a sequence's logits are, bit for bit, does not depend on which other rows are in a
// step, on how its prompt was cut into chunks, on which pages it has, nor on the number of threads; only on the
// instruction set. Each output element is reduced in an order that depends on the model's sizes alone.
//
// KV page of the oracle path (of the fast one: fast/attention.h), F32, one contiguous piece of kv_bytes_per_page()
// bytes: for each layer, for each KV head the keys transposed, [head_dim][tokens padded to 16], then for each KV head
// the values, [tokens][head_dim]. So both attention products run with lanes over their output and need no horizontal
// sums.
//
// Ownership: the executor owns the weights and the KV pool. Thread rules: one thread (see executor.h); that thread also
// computes, beside threads - 1 workers of a pool of the executor's own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "native/exec/cpu/cpu_path.h"
#include "native/exec/cpu/host_memory.h"
#include "native/exec/executor.h"
#include "native/model/model_config.h"
#include "native/model/weights.h"

namespace dyn::native {

enum class CpuIsa : uint8_t { kBest, kPortable, kAvx2, kAvx512, kAvx512Bf16 };  // the last: with VBMI

struct CpuOptions {
  unsigned threads = 0;        // 0: one a core, see cpu_topology.h
  CpuIsa isa = CpuIsa::kBest;  // others for tests and comparison; an error when this machine lacks it
};

Result<std::unique_ptr<Executor>> make_cpu_executor(ModelConfig config, Weights weights, const ExecutorLimits& limits,
                                                    const CpuOptions& options = {});

// The instruction set that a path's kernels run with here: "avx512_bf16".
std::string_view cpu_kernels_name(CpuPath path, CpuIsa isa = CpuIsa::kBest);

// What a step needs beside weights and KV pool: activations, and those of a mixture's experts. num_pages is not read.
uint64_t scratch_bytes(const ModelConfig& config, const ExecutorLimits& limits);

// Size of one page of the KV pool, all layers.
uint64_t kv_bytes_per_page(const ModelConfig& config, uint32_t tokens_per_block, CpuPath path = CpuPath::kOracle);

}  // namespace dyn::native

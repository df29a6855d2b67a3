#include "app/bench_engine_gemm.h"

#include <algorithm>
#include <chrono>

#include "native/exec/cpu/fast/kernels.h"
#include "native/exec/cpu/kernels.h"
#include "native/exec/cpu/thread_pool.h"
#include "native/model/weights.h"

namespace dyn::app::bench {
namespace {

using Clock = std::chrono::steady_clock;
using native::CpuIsa;
using native::HostArena;

constexpr uint32_t kOutputs = 256;  // rows of a thread's weights: half a MiB with 1,024 columns
constexpr int kLeastPasses = 3;

// What a thread multiplies.
struct Operands {
  native::Matrix weights;
  HostArena weight_memory;
  HostArena x;
  HostArena y;
  HostArena widened;
};

Result<Operands> make_operands(const GemmOptions& options, uint32_t most_rows) {
  Operands operands;
  operands.weights = {.layout = options.layout, .rows = kOutputs, .cols = options.cols};
  const uint64_t x_bytes = uint64_t{most_rows} * options.cols * sizeof(float);
  const std::pair<HostArena*, uint64_t> arenas[] = {
      {&operands.weight_memory, operands.weights.bytes()},
      {&operands.x, x_bytes},
      {&operands.y, uint64_t{most_rows} * kOutputs * sizeof(float)},
      {&operands.widened, uint64_t{native::FastKernels::kMaxPanels} * native::kPanelRows * options.cols * 2}};
  for (const auto& [arena, bytes] : arenas) {
    auto memory = HostArena::allocate(bytes);
    if (!memory) return memory.error();
    *arena = std::move(*memory);
  }
  operands.weights.data = operands.weight_memory.data();
  // 1.0 as BF16 everywhere: finite as F32 too, and no denormal numbers.
  const std::vector<uint16_t> ones(uint64_t{kOutputs} * options.cols, 0x3F80);
  native::pack_rows(operands.weights, reinterpret_cast<const std::byte*>(ones.data()), 0, kOutputs);
  std::fill_n(reinterpret_cast<uint16_t*>(operands.x.data()), x_bytes / 2, uint16_t{0x3F80});
  return operands;
}

void multiply(const Operands& operands, const native::Kernels& oracle, const native::FastKernels* fast, uint32_t rows) {
  auto* y = reinterpret_cast<float*>(operands.y.data());
  if (fast == nullptr) {
    oracle.gemm({.weights = &operands.weights,
                 .x = reinterpret_cast<const float*>(operands.x.data()),
                 .x_stride = operands.weights.cols,
                 .m = rows,
                 .y = y,
                 .y_stride = kOutputs},
                0, kOutputs);
    return;
  }
  fast->linear({.weights = &operands.weights,
                .x = operands.x.data(),
                .x_stride = operands.weights.cols,
                .m = rows,
                .y = y,
                .y_stride = kOutputs,
                .widened = reinterpret_cast<uint16_t*>(operands.widened.data())},
               0, operands.weights.panels());
}

}  // namespace

Result<std::vector<GemmPeak>> measure_gemm(const GemmOptions& options) {
  native::ThreadPool pool(options.threads);
  if (options.rows.empty()) return std::vector<GemmPeak>{};
  std::vector<Operands> operands;
  for (unsigned thread = 0; thread < pool.size(); ++thread) {
    auto made = make_operands(options, *std::ranges::max_element(options.rows));
    if (!made) return made.error().with_context("product peaks");
    operands.push_back(std::move(*made));
  }
  std::vector<GemmPeak> peaks;
  for (const CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    const native::Kernels* oracle = native::kernels_for(isa);
    if (oracle == nullptr) continue;
    const bool is_fast = options.path == native::CpuPath::kFast;
    if (!is_fast && oracle->isa != isa) continue;  // the same kernels again
    const native::FastKernels* fast = is_fast ? native::fast_kernels_for(isa) : nullptr;
    for (const uint32_t rows : options.rows) {
      // Few rows take microseconds: so often that starting a pass costs nothing.
      const uint32_t repeats = std::max(1U, 512 / rows);
      double best_s = 0;
      const auto begin = Clock::now();
      for (int pass = 0;; ++pass) {
        const auto start = Clock::now();
        if (pass >= kLeastPasses && std::chrono::duration<double>(start - begin).count() >= options.seconds) break;
        pool.run(pool.size(), [&](uint32_t item, unsigned) {
          for (uint32_t i = 0; i < repeats; ++i) multiply(operands[item], *oracle, fast, rows);
        });
        const double took = std::chrono::duration<double>(Clock::now() - start).count();
        if (pass == 0 || took < best_s) best_s = took;
      }
      const double flops = 2.0 * rows * kOutputs * options.cols * repeats * pool.size();
      peaks.push_back({.kernels = is_fast ? fast->name : oracle->name, .rows = rows, .flops_per_s = flops / best_s});
    }
  }
  return peaks;
}

}  // namespace dyn::app::bench

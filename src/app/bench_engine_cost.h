// How the cost of a decode step grows with its context and its batch, beside what it must cost at least.
//
//   auto points = measure_cost(executor, config, {.contexts = {1, 1024}, .batches = {1, 8}, .seconds = 0.2});
//   double ratio = points->front().step_s() / floor_s(points->front(), ceilings);     // 1: no faster is possible
//
// A step of each shape is run again and again as it stands: sequences of exactly that context, no two with a page in
// common. Nothing is prefilled for that: one page is computed and copied to all others, so that every page holds
// numbers and memory of its own, as in service. Shapes that the executor's pool or batch cannot hold are left out.
// Thread rules: the executor's thread.
#pragma once

#include <cstdint>
#include <vector>

#include "app/bench_engine_ceilings.h"
#include "app/bench_engine_measure.h"
#include "base/result.h"
#include "native/exec/executor.h"
#include "native/model/model_config.h"

namespace dyn::app::bench {

struct CostShapes {
  std::vector<unsigned> contexts;  // tokens, the one of the step included
  std::vector<unsigned> batches;
  double seconds = 0.2;  // of each point; at least kLeastCostSteps steps
};
inline constexpr uint32_t kLeastCostSteps = 3;

struct CostPoint {
  uint32_t context = 1;
  EngineRun run;  // batch, samples of single steps, work

  [[nodiscard]] double step_s() const;  // the median
};

// The larger of moving a step's bytes and computing its operations at the ceilings.
double floor_s(const CostPoint& point, const Ceilings& ceilings);

Result<std::vector<CostPoint>> measure_cost(native::Executor& executor, const native::ModelConfig& config,
                                            const CostShapes& shapes);

// Pages that the largest shape needs, of those that fit into `most_pages`.
uint64_t cost_pages(const CostShapes& shapes, uint32_t tokens_per_block, uint64_t most_pages);

}  // namespace dyn::app::bench

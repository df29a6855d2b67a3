#include "app/bench_engine_cost.h"

#include <algorithm>
#include <chrono>

#include "app/bench_stream_stats.h"

namespace dyn::app::bench {
namespace {

using Clock = std::chrono::steady_clock;
using native::PageId;

constexpr uint32_t kCopiesPerStep = 64;

uint64_t pages_of(uint32_t context, uint32_t tokens_per_block) {
  return (uint64_t{context} + tokens_per_block - 1) / tokens_per_block;
}

class CostBench {
 public:
  CostBench(native::Executor& executor, const native::ModelConfig& config) : executor_(executor), config_(config) {
    // No two neighbours follow each other, as in a pool that has been in use.
    const auto pages = static_cast<PageId>(executor.limits().num_pages);
    for (PageId offset = 0; offset < 7; ++offset) {
      for (PageId page = offset; page < pages; page += 7) order_.push_back(page);
    }
  }

  Result<void> fill_pages() {
    const uint32_t tokens = executor_.limits().tokens_per_block;
    plan_.clear();
    open_rows();
    for (uint32_t i = 0; i < tokens; ++i) add_token(i, i);
    close_row(tokens, 0);
    if (auto done = step(); !done) return done;
    for (size_t at = 1; at < order_.size();) {
      plan_.clear();
      for (uint32_t i = 0; i < kCopiesPerStep && at < order_.size(); ++i, ++at)
        plan_.page_copies.push_back({.from = order_[0], .to = order_[at]});
      // A step must have a row; this one reads its own token alone.
      open_rows();
      add_token(0, 0);
      close_row(1, 0);
      if (auto done = step(); !done) return done;
    }
    return {};
  }

  Result<CostPoint> measure(uint32_t context, uint32_t batch, double seconds) {
    const uint64_t row_pages = pages_of(context, executor_.limits().tokens_per_block);
    plan_.clear();
    open_rows();
    for (uint32_t row = 0; row < batch; ++row) {
      add_token(row, context - 1);
      close_row(context, row * row_pages);
      plan_.slot_starts.push_back({.slot = row, .sampling = {.temperature = 0.0F}, .prompt = {}, .generated = {}});
      plan_.samples.push_back({.row = row, .slot = row, .stop_tokens = {}});
    }
    if (auto done = step(); !done) return done.error();  // brings weights and pages to where later steps find them
    plan_.slot_starts.clear();

    CostPoint point{.context = context, .run = {.batch = batch, .prompt = context, .step_tokens = batch}};
    EngineRun& run = point.run;
    const CpuShares cpus;
    while (run.samples_us.size() < kLeastCostSteps || run.seconds < seconds) {
      const auto start = Clock::now();
      if (auto done = step(); !done) return done.error();
      const double took = std::chrono::duration<double>(Clock::now() - start).count();
      run.seconds += took;
      run.samples_us.push_back(static_cast<uint32_t>(std::min(took * 1e6, 4e9)));
      run.tokens += batch;
      run.work.bytes += executor_.active_bytes(plan_);
      run.work.flops += step_flops(config_, plan_);
    }
    cpus.write_to(run.own_cpus, run.others_cpus);
    std::ranges::sort(run.samples_us);
    if (std::ranges::any_of(result_.not_finite, [](uint8_t flag) { return flag != 0; }))
      return internal_error("the logits are not finite");
    return point;
  }

 private:
  void open_rows() {
    plan_.row_offsets.push_back(0);
    plan_.page_offsets.push_back(0);
  }
  void add_token(uint32_t seed, uint32_t position) {
    plan_.tokens.push_back(((seed + 1) * 2'654'435'761U >> 8) % config_.vocab_size);
    plan_.positions.push_back(static_cast<int32_t>(position));
  }
  // Its pages are those from `first` on in the scattered order.
  void close_row(uint32_t context, uint64_t first) {
    plan_.row_offsets.push_back(static_cast<uint32_t>(plan_.tokens.size()));
    plan_.context_lens.push_back(static_cast<int32_t>(context));
    const auto begin = order_.begin() + static_cast<std::ptrdiff_t>(first);
    const auto pages = static_cast<std::ptrdiff_t>(pages_of(context, executor_.limits().tokens_per_block));
    plan_.pages.insert(plan_.pages.end(), begin, begin + pages);
    plan_.page_offsets.push_back(static_cast<uint32_t>(plan_.pages.size()));
  }
  Result<void> step() {
    if (auto done = executor_.enqueue(plan_); !done) return done;
    return executor_.collect(result_);
  }

  native::Executor& executor_;
  const native::ModelConfig& config_;
  std::vector<PageId> order_;
  native::StepPlan plan_;
  native::StepResult result_;
};

}  // namespace

double CostPoint::step_s() const {
  return percentile(run.samples_us, 0.5) / 1e6;
}

double floor_s(const CostPoint& point, const Ceilings& ceilings) {
  const auto at = [](double amount, double rate) { return rate > 0 ? amount / rate : 0; };
  return std::max(at(point.run.per_sample(point.run.work.bytes), ceilings.read_bytes_per_s),
                  at(point.run.per_sample(point.run.work.flops), ceilings.flops_per_s));
}

Result<std::vector<CostPoint>> measure_cost(native::Executor& executor, const native::ModelConfig& config,
                                            const CostShapes& shapes) {
  const native::ExecutorLimits& limits = executor.limits();
  std::vector<CostPoint> points;
  CostBench bench(executor, config);
  if (auto filled = bench.fill_pages(); !filled) return filled.error().with_context("filling pages");
  for (const unsigned context : shapes.contexts) {
    for (const unsigned batch : shapes.batches) {
      if (context > config.max_positions || batch > limits.max_batch_size ||
          batch * pages_of(context, limits.tokens_per_block) > limits.num_pages) {
        continue;
      }
      auto point = bench.measure(context, batch, shapes.seconds);
      if (!point) return point.error();
      points.push_back(*std::move(point));
    }
  }
  return points;
}

uint64_t cost_pages(const CostShapes& shapes, uint32_t tokens_per_block, uint64_t most_pages) {
  uint64_t pages = 0;
  for (const unsigned context : shapes.contexts) {
    for (const unsigned batch : shapes.batches) {
      const uint64_t needed = batch * pages_of(context, tokens_per_block);
      if (needed <= most_pages) pages = std::max(pages, needed);
    }
  }
  return pages;
}

}  // namespace dyn::app::bench

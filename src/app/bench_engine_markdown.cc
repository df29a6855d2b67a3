#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "app/bench_engine_report.h"
#include "app/bench_stream_report.h"
#include "app/bench_stream_stats.h"

namespace dyn::app::bench {
namespace {

constexpr double kCostLimit = 1.4;  // a step that takes more times its floor is marked

double giga(double amount) {
  return amount / 1e9;
}
double percent(double part, double whole) {
  return whole > 0 ? 100 * part / whole : 0;
}
double ms(const std::vector<uint32_t>& samples, double q) {
  return percentile(samples, q) / 1e3;
}

std::string start_and_memory(const EngineReport& report) {
  const EngineLevelReport& engine = *report.engine;
  std::string out = fmt::format(
      "| start-up | s |\n|---|---|\n| model loaded, KV pool and threads made | {:.2f} |\n| warm-up request | {:.2f} |\n"
      "| first token of a request | {:.3f} |\n| all together | {:.2f} |\n\n",
      engine.load_s, engine.warm_up_s, engine.first_token_s, engine.load_s + engine.warm_up_s + engine.first_token_s);
  out += "| memory | GB |\n|---|---|\n";
  out += fmt::format("| weights | {:.2f} |\n", giga(static_cast<double>(engine.weight_bytes)));
  out += fmt::format("| KV pool ({} tokens) | {:.2f} |\n| resident at most | {:.2f} |\n\n", engine.kv_pool_tokens,
                     giga(static_cast<double>(engine.kv_pool_bytes)),
                     giga(static_cast<double>(engine.resident.peak_bytes)));
  return out;
}

std::string loads(const EngineLevelReport& engine) {
  std::string out =
      "| sequences | prompt | answer | output tokens/s | tokens/s in total | TTFT p50 ms | TPOT p50 ms |\n"
      "|---|---|---|---|---|---|---|\n";
  for (const EngineLoadRun& run : engine.runs) {
    out += fmt::format("| {} | {} | {} | {:.1f} | {:.1f} | {:.2f} | {} |\n", run.load.sequences, run.load.input,
                       run.load.output, run.output_tokens_per_s(), run.total_tokens_per_s(), ms(run.ttft_us, 0.5),
                       run.tpot_us.empty() ? "-" : fmt::format("{:.2f}", ms(run.tpot_us, 0.5)));
  }
  return out + "\n";
}

std::string runs(const std::vector<EngineRun>& all, const Ceilings& ceilings, bool decode) {
  std::string out = fmt::format(
      "| {} | tokens/s | p50 ms | p99 ms | GB/s | % of read | GFLOP/s | % of multiply-add |\n"
      "|---|---|---|---|---|---|---|---|\n",
      decode ? "batch" : "prompt");
  for (const EngineRun& run : all) {
    const double read = run.per_second(run.work.bytes);
    const double flops = run.per_second(run.work.flops);
    out += fmt::format("| {} | {:.1f} | {:.2f} | {:.2f} | {:.2f} | {:.1f} | {:.1f} | {:.1f} |\n",
                       decode ? run.batch : run.prompt, run.tokens_per_s(), ms(run.samples_us, 0.5),
                       ms(run.samples_us, 0.99), giga(read), percent(read, ceilings.read_bytes_per_s), giga(flops),
                       percent(flops, ceilings.flops_per_s));
  }
  return out + "\n";
}

// One cell a point: its step in ms and the ratio to its floor.
std::string cost(const EngineReport& report) {
  std::set<uint32_t> contexts;
  std::set<uint32_t> batches;
  for (const CostPoint& point : report.cost) {
    contexts.insert(point.context);
    batches.insert(point.run.batch);
  }
  std::string out = "| context | ";
  std::string line = "|---|";
  for (const uint32_t batch : batches) {
    out += fmt::format("batch {} | ", batch);
    line += "---|";
  }
  out.back() = '\n';
  out += line + "\n";
  for (const uint32_t context : contexts) {
    out += fmt::format("| {} | ", context);
    for (const uint32_t batch : batches) {
      const auto point = std::ranges::find_if(
          report.cost, [&](const CostPoint& p) { return p.context == context && p.run.batch == batch; });
      if (point == report.cost.end()) {
        out += "- | ";
        continue;
      }
      const double floor = floor_s(*point, report.ceilings);
      const double ratio = floor > 0 ? point->step_s() / floor : 0;
      out += fmt::format(fmt::runtime(ratio > kCostLimit ? "{:.2f} (**{:.2f}**) | " : "{:.2f} ({:.2f}) | "),
                         1e3 * point->step_s(), ratio);
    }
    out.back() = '\n';
  }
  return out + "\n";
}

}  // namespace

std::string to_markdown(const EngineReport& report) {
  const Ceilings& ceilings = report.ceilings;
  std::string out = fmt::format(
      "{}; {}{}, {} threads{}. Read bandwidth {:.2f} GB/s, multiply-adds {:.1f} GFLOP/s{}.\n\n", machine(),
      report.model, report.dummy_weights ? " (random weights)" : "", report.threads,
      report.isa.empty() ? "" : ", " + report.path + ", " + report.isa, giga(ceilings.read_bytes_per_s),
      giga(ceilings.flops_per_s), ceilings.cpus >= kUndisturbed * ceilings.threads ? "" : " (disturbed: too low)");
  if (report.engine) out += "Start-up and memory:\n\n" + start_and_memory(report);
  if (report.engine) out += "The engine under load:\n\n" + loads(*report.engine);
  if (!report.prompts.empty()) out += "Time to first token:\n\n" + runs(report.prompts, ceilings, false);
  if (!report.decodes.empty()) out += "Decoding:\n\n" + runs(report.decodes, ceilings, true);
  if (!report.cost.empty()) {
    out += fmt::format("A decode step in ms, in brackets how many times its floor (above {}: bold):\n\n", kCostLimit) +
           cost(report);
  }
  double others = 0;
  for (const EngineRun& run : report.prompts) others = std::max(others, run.others_cpus);
  for (const EngineRun& run : report.decodes) others = std::max(others, run.others_cpus);
  for (const CostPoint& point : report.cost) others = std::max(others, point.run.others_cpus);
  if (report.engine) {
    for (const EngineLoadRun& run : report.engine->runs) others = std::max(others, run.others_cpus);
  }
  return out + fmt::format("Other processes kept {:.2f} CPUs busy at most.\n", others);
}

}  // namespace dyn::app::bench

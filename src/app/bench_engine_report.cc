#include "app/bench_engine_report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/bench_stream_report.h"
#include "app/bench_stream_stats.h"

namespace dyn::app::bench {
namespace {

using Json = nlohmann::ordered_json;

double giga(double amount) {
  return amount / 1e9;
}
double giga(uint64_t amount) {
  return giga(static_cast<double>(amount));
}
double share(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}
double ms(const EngineRun& run, double q) {
  return percentile(run.samples_us, q) / 1e3;
}

constexpr const char* kWorkHead = " {:>9} {:>7} {:>6} {:>8} {:>6} {:>6} {:>5} {:>6}\n";

// What the executor's products reach with as many rows as the steps of `run` have; 0: not measured.
double gemm_peak(const EngineRun& run, const EngineReport& report) {
  for (const GemmPeak& peak : report.gemm) {
    if (peak.kernels == report.isa && peak.rows == run.step_tokens) return peak.flops_per_s;
  }
  return 0;
}

std::string work_columns(const EngineRun& run, const EngineReport& report) {
  const Ceilings& ceilings = report.ceilings;
  const double read = run.per_second(run.work.bytes);
  const double flops = run.per_second(run.work.flops);
  return fmt::format(" {:>9.2f} {:>7.2f} {:>6.1f} {:>8.2f} {:>6.1f} {:>6.1f} {:>5.2f} {:>6.2f}\n",
                     run.per_sample(run.work.bytes) / 1e6, giga(read), 100 * share(read, ceilings.read_bytes_per_s),
                     giga(flops), 100 * share(flops, ceilings.flops_per_s), 100 * share(flops, gemm_peak(run, report)),
                     run.own_cpus, run.others_cpus);
}

void add_work(Json& object, const EngineRun& run, const EngineReport& report) {
  const Ceilings& ceilings = report.ceilings;
  const double read = run.per_second(run.work.bytes);
  const double flops = run.per_second(run.work.flops);
  object["bytes_per_sample"] = run.per_sample(run.work.bytes);
  object["flops_per_sample"] = run.per_sample(run.work.flops);
  object["bytes_per_s"] = read;
  object["share_of_read_bandwidth"] = share(read, ceilings.read_bytes_per_s);
  object["flops_per_s"] = flops;
  object["share_of_fma_peak"] = share(flops, ceilings.flops_per_s);
  object["gemm_peak_flops_per_s"] = gemm_peak(run, report);
  object["share_of_gemm_peak"] = share(flops, gemm_peak(run, report));
  object["seconds"] = run.seconds;
  object["own_cpus"] = run.own_cpus;
  object["others_cpus"] = run.others_cpus;
}

std::string engine_table(const EngineLevelReport& engine) {
  std::string out = fmt::format(
      "start-up   load {:.2f} s, warm-up {:.2f} s, first token {:.1f} ms\n"
      "memory     resident {:.2f} GB at most; weights {:.2f} GB, KV pool {:.2f} GB ({} tokens)\n\nwhole engine under "
      "load\n",
      engine.load_s, engine.warm_up_s, 1e3 * engine.first_token_s, giga(engine.resident.peak_bytes),
      giga(engine.weight_bytes), giga(engine.kv_pool_bytes), engine.kv_pool_tokens);
  out += fmt::format("{:>7} {:>7} {:>7} {:>7} {:>9} {:>9} {:>10} {:>10} {:>10} {:>5} {:>6}\n", "streams", "prompt",
                     "answer", "rounds", "output/s", "total/s", "TTFT p50", "TPOT p50", "TPOT p99", "cpus", "others");
  for (const EngineLoadRun& run : engine.runs) {
    out += fmt::format("{:>7} {:>7} {:>7} {:>7} {:>9.1f} {:>9.1f} {:>10.2f} {:>10.2f} {:>10.2f} {:>5.2f} {:>6.2f}\n",
                       run.load.sequences, run.load.input, run.load.output, run.rounds, run.output_tokens_per_s(),
                       run.total_tokens_per_s(), percentile(run.ttft_us, 0.5) / 1e3, percentile(run.tpot_us, 0.5) / 1e3,
                       percentile(run.tpot_us, 0.99) / 1e3, run.own_cpus, run.others_cpus);
  }
  return out;
}

std::string cost_table(const EngineReport& report) {
  std::string out = fmt::format("\ncost of a decode step\n{:>7} {:>6} {:>6} {:>9} {:>9} {:>9} {:>6}", "context",
                                "batch", "steps", "p50 ms", "best ms", "floor ms", "ratio");
  out +=
      fmt::format(fmt::runtime(kWorkHead), "MB/step", "GB/s", "% read", "GFLOP/s", "% fma", "% gemm", "cpus", "others");
  for (const CostPoint& point : report.cost) {
    const double floor = floor_s(point, report.ceilings);
    out += fmt::format("{:>7} {:>6} {:>6} {:>9.2f} {:>9.2f} {:>9.2f} {:>6.2f}", point.context, point.run.batch,
                       point.run.samples_us.size(), 1e3 * point.step_s(), ms(point.run, 0), 1e3 * floor,
                       share(point.step_s(), floor));
    out += work_columns(point.run, report);
  }
  return out;
}

Json engine_json(const EngineLevelReport& engine) {
  const auto times = [](const std::vector<uint32_t>& samples) {
    return Json{{"p50", percentile(samples, 0.5) / 1e3},
                {"p90", percentile(samples, 0.9) / 1e3},
                {"p99", percentile(samples, 0.99) / 1e3}};
  };
  Json root{{"load_s", engine.load_s},
            {"warm_up_s", engine.warm_up_s},
            {"first_token_s", engine.first_token_s},
            {"weight_bytes", engine.weight_bytes},
            {"kv_pool_tokens", engine.kv_pool_tokens},
            {"kv_pool_bytes", engine.kv_pool_bytes},
            {"resident_peak_bytes", engine.resident.peak_bytes},
            {"loads", Json::array()}};
  for (const EngineLoadRun& run : engine.runs) {
    root["loads"].push_back({{"sequences", run.load.sequences},
                             {"input_len", run.load.input},
                             {"output_len", run.load.output},
                             {"rounds", run.rounds},
                             {"seconds", run.seconds},
                             {"output_throughput", run.output_tokens_per_s()},
                             {"total_token_throughput", run.total_tokens_per_s()},
                             {"ttft_ms", times(run.ttft_us)},
                             {"tpot_ms", times(run.tpot_us)},
                             {"own_cpus", run.own_cpus},
                             {"others_cpus", run.others_cpus}});
  }
  return root;
}

}  // namespace

std::string to_table(const EngineReport& report) {
  const EngineStart& start = report.start;
  const Ceilings& ceilings = report.ceilings;
  std::string out = fmt::format("{}\n{} ({}{}), {}, {}, {} threads\n\n", machine(), report.model, report.architecture,
                                report.dummy_weights ? ", dummy weights" : "", report.path, report.isa, report.threads);
  out += fmt::format("ceilings   read {:.2f} GB/s ({} MiB buffer); multiply-add", giga(ceilings.read_bytes_per_s),
                     ceilings.buffer_bytes >> 20);
  for (const auto& [name, rate] : ceilings.all) out += fmt::format(" {} {:.1f}", name, giga(rate));
  out += fmt::format(
      " GFLOP/s\n{}",
      ceilings.cpus >= kUndisturbed * ceilings.threads
          ? ""
          : fmt::format("           too low, and shares of them too high: the best passes had {:.1f} of {} CPUs\n",
                        ceilings.cpus, ceilings.threads));
  for (const GemmPeak& peak : report.gemm) {
    if (&peak == &report.gemm.front() || (&peak)[-1].kernels != peak.kernels) {
      out +=
          fmt::format("{}products   {:<12} GFLOP/s by rows", &peak == &report.gemm.front() ? "" : "\n", peak.kernels);
    }
    out += fmt::format("  {}: {:.1f}", peak.rows, giga(peak.flops_per_s));
  }
  if (!report.gemm.empty()) out += "\n";
  if (report.engine) out += engine_table(*report.engine);
  if (report.weight_bytes > 0) {
    out += fmt::format(
        "\nexecutor alone\nstart-up   config {:.1f} ms, weights {:.2f} s ({:.2f} GB, {:.2f} GB/s), executor {:.1f} ms, "
        "first token {:.1f} ms ({} tokens)\n",
        1e3 * start.config_s, start.weights_s, giga(report.weight_bytes),
        share(giga(report.weight_bytes), start.weights_s), 1e3 * start.executor_s, 1e3 * start.first_token_s,
        start.first_prompt);
    out += fmt::format(
        "memory     resident {:.2f} GB loaded, {:.2f} GB after all runs, {:.2f} GB at most; weights {:.2f} GB, KV pool "
        "{:.2f} GB ({} tokens)\n",
        giga(report.loaded_resident_bytes), giga(report.resident.now_bytes), giga(report.resident.peak_bytes),
        giga(report.weight_bytes), giga(report.kv_pool_bytes), report.kv_pool_tokens);
  }

  const auto work_head = [&](const char* bytes) {
    out +=
        fmt::format(fmt::runtime(kWorkHead), bytes, "GB/s", "% read", "GFLOP/s", "% fma", "% gemm", "cpus", "others");
  };
  if (!report.prompts.empty()) {
    out += fmt::format("\ntime to first token\n{:>7} {:>6} {:>10} {:>10} {:>10}", "prompt", "runs", "tokens/s",
                       "p50 ms", "p99 ms");
    work_head("MB/prompt");
  }
  for (const EngineRun& run : report.prompts) {
    out += fmt::format("{:>7} {:>6} {:>10.1f} {:>10.2f} {:>10.2f}", run.prompt, run.samples_us.size(),
                       run.tokens_per_s(), ms(run, 0.5), ms(run, 0.99));
    out += work_columns(run, report);
  }
  if (!report.decodes.empty()) {
    out += fmt::format("\ndecode\n{:>7} {:>6} {:>10} {:>10} {:>10}", "batch", "steps", "tokens/s", "ITL p50 ms",
                       "ITL p99 ms");
    work_head("MB/step");
  }
  for (const EngineRun& run : report.decodes) {
    out += fmt::format("{:>7} {:>6} {:>10.1f} {:>10.2f} {:>10.2f}", run.batch, run.samples_us.size(),
                       run.tokens_per_s(), ms(run, 0.5), ms(run, 0.99));
    out += work_columns(run, report);
  }
  if (!report.cost.empty()) out += cost_table(report);
  out +=
      "\nMB, GB/s: what a step must move at least (weights once, KV read and written), and that in the time taken.\n"
      "% read, % fma: of the ceilings; % gemm: of what products of as many rows reach with weights in the caches. "
      "cpus:\n"
      "CPUs this process had, others: CPUs that other processes kept busy meanwhile; figures of a busy machine do not\n"
      "stand.\n";
  return out;
}

std::string to_json(const EngineReport& report) {
  const EngineStart& start = report.start;
  Json peaks = Json::object();
  for (const auto& [name, rate] : report.ceilings.all) peaks[name] = rate;
  Json gemm = Json::array();
  for (const GemmPeak& peak : report.gemm) {
    gemm.push_back({{"kernels", peak.kernels}, {"rows", peak.rows}, {"flops_per_s", peak.flops_per_s}});
  }
  Json root{{"machine", machine()},
            {"model", report.model},
            {"architecture", report.architecture},
            {"dummy_weights", report.dummy_weights},
            {"path", report.path},
            {"isa", report.isa},
            {"threads", report.threads},
            {"ceilings",
             {{"read_bytes_per_s", report.ceilings.read_bytes_per_s},
              {"read_buffer_bytes", report.ceilings.buffer_bytes},
              {"cpus", report.ceilings.cpus},
              {"flops_per_s", report.ceilings.flops_per_s},
              {"flops_per_s_by_isa", std::move(peaks)},
              {"gemm", std::move(gemm)}}},
            {"start",
             {{"config_s", start.config_s},
              {"weights_s", start.weights_s},
              {"weights_bytes_per_s", share(static_cast<double>(report.weight_bytes), start.weights_s)},
              {"executor_s", start.executor_s},
              {"first_token_s", start.first_token_s},
              {"first_prompt_tokens", start.first_prompt}}},
            {"memory",
             {{"resident_loaded_bytes", report.loaded_resident_bytes},
              {"resident_bytes", report.resident.now_bytes},
              {"resident_peak_bytes", report.resident.peak_bytes},
              {"weight_bytes", report.weight_bytes},
              {"kv_pool_bytes", report.kv_pool_bytes},
              {"kv_pool_tokens", report.kv_pool_tokens}}},
            {"time_to_first_token", Json::array()},
            {"decode", Json::array()}};
  for (const EngineRun& run : report.prompts) {
    Json object{{"prompt_tokens", run.prompt},
                {"runs", run.samples_us.size()},
                {"tokens_per_s", run.tokens_per_s()},
                {"ttft_ms", {{"p50", ms(run, 0.5)}, {"p99", ms(run, 0.99)}}}};
    add_work(object, run, report);
    root["time_to_first_token"].push_back(std::move(object));
  }
  for (const EngineRun& run : report.decodes) {
    Json object{{"batch", run.batch},
                {"steps", run.samples_us.size()},
                {"tokens_per_s", run.tokens_per_s()},
                {"itl_ms", {{"p50", ms(run, 0.5)}, {"p99", ms(run, 0.99)}}}};
    add_work(object, run, report);
    root["decode"].push_back(std::move(object));
  }
  root["cost"] = Json::array();
  for (const CostPoint& point : report.cost) {
    const double floor = floor_s(point, report.ceilings);
    Json object{{"context", point.context},
                {"batch", point.run.batch},
                {"steps", point.run.samples_us.size()},
                {"step_ms", {{"p50", ms(point.run, 0.5)}, {"best", ms(point.run, 0)}}},
                {"floor_ms", 1e3 * floor},
                {"ratio_to_floor", share(point.step_s(), floor)}};
    add_work(object, point.run, report);
    root["cost"].push_back(std::move(object));
  }
  root["engine"] = report.engine ? engine_json(*report.engine) : Json();
  return root.dump(2);
}

}  // namespace dyn::app::bench

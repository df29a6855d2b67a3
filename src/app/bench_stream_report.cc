#include "app/bench_stream_report.h"

#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

namespace dyn::app::bench {
namespace {

using Json = nlohmann::ordered_json;

double per(double amount, uint64_t tokens) {
  return tokens == 0 ? 0 : amount / static_cast<double>(tokens);
}

Json to_object(const RunSummary& run) {
  Json threads = Json::object();
  for (const auto& [name, us] : run.threads) threads[name] = us;
  return {{"cpu_us_per_token", run.cpu_us_per_token},
          {"user_share", run.user_share},
          {"tokens_per_s", run.tokens_per_s},
          {"bytes_per_token", run.bytes_per_token},
          {"context_switches_per_1000_tokens", run.switches_per_ktoken},
          {"involuntary_switches_per_1000_tokens", run.involuntary_per_ktoken},
          {"latency_us", {{"p50", run.p50_us}, {"p99", run.p99_us}, {"p99.9", run.p999_us}, {"max", run.max_us}}},
          {"sink_cpu_us_per_token", run.sink_cpu_us_per_token},
          {"others_cpus", run.others_cpus},
          {"tokens", run.tokens},
          {"threads_cpu_us_per_token", std::move(threads)}};
}

Json to_object(const std::vector<RunSummary>& runs) {
  Json object = to_object(median_of(runs));
  object["rounds"] = Json::array();
  for (const RunSummary& run : runs) object["rounds"].push_back(to_object(run));
  return object;
}

}  // namespace

RunSummary summarize(const SinkReport& report) {
  RunSummary run;
  run.tokens = report.tokens;
  run.cpu_us_per_token = report.cpu_us_per_token();
  const auto split = report.usage.user_ns + report.usage.system_ns;
  run.user_share = split == 0 ? 0 : static_cast<double>(report.usage.user_ns) / static_cast<double>(split);
  run.tokens_per_s = report.window_s > 0 ? static_cast<double>(report.tokens) / report.window_s : 0;
  run.bytes_per_token = per(static_cast<double>(report.bytes), report.tokens);
  const auto involuntary = static_cast<double>(report.usage.involuntary_switches);
  run.switches_per_ktoken =
      per(1e3 * (static_cast<double>(report.usage.voluntary_switches) + involuntary), report.tokens);
  run.involuntary_per_ktoken = per(1e3 * involuntary, report.tokens);
  run.p50_us = percentile(report.latency_us, 0.50);
  run.p99_us = percentile(report.latency_us, 0.99);
  run.p999_us = percentile(report.latency_us, 0.999);
  run.max_us = percentile(report.latency_us, 1.0);
  run.sink_cpu_us_per_token = per(report.sink_cpu_us, report.tokens);
  run.others_cpus = report.others_cpus;
  for (const ThreadUsage& thread : report.usage.threads) {
    const double us = per(static_cast<double>(thread.cpu_ns) / 1e3, report.tokens);
    const auto same = std::ranges::find(run.threads, thread.name, &std::pair<std::string, double>::first);
    if (same == run.threads.end()) {
      run.threads.emplace_back(thread.name, us);
    } else {
      same->second += us;
    }
  }
  return run;
}

RunSummary median_of(const std::vector<RunSummary>& runs) {
  RunSummary result;
  if (runs.empty()) return result;
  for (double RunSummary::* member :
       {&RunSummary::cpu_us_per_token, &RunSummary::user_share, &RunSummary::tokens_per_s, &RunSummary::bytes_per_token,
        &RunSummary::switches_per_ktoken, &RunSummary::involuntary_per_ktoken, &RunSummary::p50_us, &RunSummary::p99_us,
        &RunSummary::p999_us, &RunSummary::max_us, &RunSummary::sink_cpu_us_per_token, &RunSummary::others_cpus}) {
    std::vector<double> values;
    values.reserve(runs.size());
    for (const RunSummary& run : runs) values.push_back(run.*member);
    result.*member = median(std::move(values));
  }
  for (const RunSummary& run : runs) result.tokens += run.tokens;
  result.threads = runs.front().threads;
  return result;
}

double StreamResult::ratio() const {
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(worker.size(), bare.size()); ++i) {
    if (bare[i].cpu_us_per_token > 0) ratios.push_back(worker[i].cpu_us_per_token / bare[i].cpu_us_per_token);
  }
  return median(std::move(ratios));
}

std::string to_table(const std::vector<StreamResult>& results) {
  std::string out = fmt::format("{}\n\n", machine());
  out +=
      fmt::format("{:>7} {:>8} {:>9}  {:<10} {:>7} {:>6}  {:>7} {:>7} {:>7}  {:>8} {:>6} {:>6}\n", "streams", "step ms",
                  "tokens/s", "sender", "CPU us", "ratio", "p50 us", "p99 us", "p99.9", "switches", "bytes", "others");
  const auto line = [&](const StreamResult& row, const char* sender, const std::vector<RunSummary>& runs,
                        const std::string& ratio) {
    const RunSummary run = median_of(runs);
    out += fmt::format(
        "{:>7} {:>8.2f} {:>9.0f}  {:<10} {:>7.2f} {:>6}  {:>7.0f} {:>7.0f} {:>7.0f}  {:>8.1f} {:>6.1f} {:>6.2f}\n",
        row.streams, row.step_ms, run.tokens_per_s, sender, run.cpu_us_per_token, ratio, run.p50_us, run.p99_us,
        run.p999_us, run.switches_per_ktoken, run.bytes_per_token, run.others_cpus);
  };
  for (const StreamResult& row : results) {
    if (!row.bare.empty()) line(row, "bare send", row.bare, "1");
    if (!row.worker.empty())
      line(row, "worker", row.worker, row.bare.empty() ? "-" : fmt::format("{:.2f}", row.ratio()));
  }
  out +=
      "\nCPU us: user + system time of the sending process per token, socket write included. p50 ... p99.9: engine's\n"
      "hand-out to the sink. switches: context switches per 1,000 tokens. bytes: per token, framing included.\n"
      "others: CPUs that other processes kept busy meanwhile; figures of a busy machine do not stand.\n"
      "Medians over the rounds; ratio: median of each round's own.\n";
  return out;
}

std::string to_json(const std::vector<StreamResult>& results) {
  Json root{{"machine", machine()}, {"results", Json::array()}};
  for (const StreamResult& row : results) {
    Json object{{"streams", row.streams}, {"step_ms", row.step_ms}};
    if (!row.worker.empty()) object["worker"] = to_object(row.worker);
    if (!row.bare.empty()) object["bare_send"] = to_object(row.bare);
    if (!row.worker.empty() && !row.bare.empty()) object["ratio"] = row.ratio();
    root["results"].push_back(std::move(object));
  }
  return root.dump(2);
}

std::string sink_table(const SinkReport& report) {
  const RunSummary run = summarize(report);
  std::string out = fmt::format(
      "{} streams, {} tokens in {:.2f} s = {:.0f} tokens/s, {:.1f} bytes per token; all streams flowing after {:.2f} "
      "s\n",
      report.streams, report.tokens, report.window_s, run.tokens_per_s, run.bytes_per_token, report.ramp_s);
  if (report.usage.cpu_ns > 0) {
    out += fmt::format("worker: {:.2f} us CPU per token ({:.0f} % user), {:.1f} context switches per 1,000 tokens\n",
                       run.cpu_us_per_token, 100 * run.user_share, run.switches_per_ktoken);
  }
  if (!report.latency_us.empty()) {
    out += fmt::format("hand-out to sink: p50 {:.0f} us, p99 {:.0f} us, p99.9 {:.0f} us, max {:.0f} us\n", run.p50_us,
                       run.p99_us, run.p999_us, run.max_us);
  }
  out += fmt::format("received {} tokens: {} lost, {} extra, {} out of order, {} streams unfinished{}\n",
                     report.total_tokens, report.lost_tokens, report.extra_tokens, report.misordered, report.unfinished,
                     report.window_cut_short ? "; streams ended inside the window" : "");
  return out;
}

std::string sink_json(const SinkReport& report) {
  Json object = to_object(summarize(report));
  object["streams"] = report.streams;
  object["window_s"] = report.window_s;
  object["ramp_s"] = report.ramp_s;
  object["total_tokens"] = report.total_tokens;
  object["lost_tokens"] = report.lost_tokens;
  object["extra_tokens"] = report.extra_tokens;
  object["misordered"] = report.misordered;
  object["unfinished_streams"] = report.unfinished;
  object["window_cut_short"] = report.window_cut_short;
  object["machine"] = machine();
  return object.dump(2);
}

std::string machine() {
  std::string model = "unknown CPU";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  }
  utsname name{};
  ::uname(&name);
  return fmt::format("{}, {} CPUs, {} {}", model, ::sysconf(_SC_NPROCESSORS_ONLN), name.sysname, name.release);
}

}  // namespace dyn::app::bench

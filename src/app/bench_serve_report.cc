#include "app/bench_serve_report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <numeric>

#include "app/bench_stream_report.h"
#include "app/bench_stream_stats.h"

namespace dyn::app::bench {
namespace {

using Json = nlohmann::ordered_json;
using Samples = std::vector<uint32_t>;  // microseconds, ascending

double mean_ms(const Samples& samples) {
  if (samples.empty()) return 0;
  return std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size()) / 1e3;
}
double ms(const Samples& samples, double q) {
  return percentile(samples, q) / 1e3;
}
double each(uint64_t sum, uint64_t count) {
  return count > 0 ? static_cast<double>(sum) / static_cast<double>(count) : 0;
}

struct Metric {
  const char* key;
  const char* title;
  const Samples& samples;
};
std::vector<Metric> metrics_of(const LoadResult& result) {
  return {{"ttft", "TTFT (to first token)", result.ttft_us},
          {"tpot", "TPOT (per output token)", result.tpot_us},
          {"itl", "ITL (between tokens)", result.itl_us},
          {"e2el", "E2EL (end to end)", result.e2el_us}};
}

std::string range(LengthRange lengths) {
  return lengths.least == lengths.most ? std::to_string(lengths.least)
                                       : fmt::format("{} to {}", lengths.least, lengths.most);
}

// The first line of an error's text, shortened.
std::string brief(std::string_view text) {
  constexpr size_t kMost = 160;
  text = text.substr(0, text.find('\n'));
  return std::string(text.substr(0, kMost)) + (text.size() > kMost ? "..." : "");
}

}  // namespace

ServeRates rates_of(const LoadResult& result) {
  if (result.duration_s <= 0) return {};
  const auto rate = [&](uint64_t count) { return static_cast<double>(count) / result.duration_s; };
  return {.requests_per_s = rate(result.completed),
          .output_tokens_per_s = rate(result.output_tokens),
          .total_tokens_per_s = rate(result.input_tokens + result.output_tokens)};
}

std::vector<std::string> missed(const LoadResult& result, const ServeThresholds& thresholds) {
  std::vector<std::string> lines;
  const auto at_most = [&](const char* what, const Samples& samples, double limit_ms) {
    if (limit_ms <= 0) return;
    if (samples.empty()) {
      lines.push_back(fmt::format("p99 {}: no sample", what));
    } else if (const double p99 = ms(samples, 0.99); p99 > limit_ms) {
      lines.push_back(fmt::format("p99 {} {:.2f} ms is above {:.2f} ms", what, p99, limit_ms));
    }
  };
  at_most("TTFT", result.ttft_us, thresholds.max_p99_ttft_ms);
  at_most("ITL", result.itl_us, thresholds.max_p99_itl_ms);
  at_most("E2EL", result.e2el_us, thresholds.max_p99_e2el_ms);
  if (const double rate = rates_of(result).output_tokens_per_s; rate < thresholds.min_output_throughput)
    lines.push_back(fmt::format("{:.1f} output tokens/s are below {:.1f}", rate, thresholds.min_output_throughput));
  if (result.failed > thresholds.max_failed)
    lines.push_back(fmt::format("{} requests failed, {} may", result.failed, thresholds.max_failed));
  if (result.completed == 0) lines.emplace_back("no request was completed");
  return lines;
}

std::string serve_table(const ServeRun& run, const LoadResult& result) {
  const ServeRates rates = rates_of(result);
  std::string out = fmt::format("{}\n{}, model {}, {}\n", machine(), run.url, run.model, run.endpoint_type);
  if (run.dataset.empty()) {
    out += fmt::format("random prompts of {} tokens, answers of {}; ", range(run.input), range(run.output));
  } else {
    out += run.dataset + "; ";
  }
  out += run.request_rate > 0 ? fmt::format("{} requests/s, ", run.request_rate) : std::string();
  out += fmt::format("at most {} at once, {} reached; seed {}\n\n", run.max_concurrency, result.peak_concurrency,
                     run.seed);
  out += fmt::format("requests     {} completed, {} failed{} in {:.2f} s{}\n", result.completed, result.failed,
                     result.cancelled > 0 ? fmt::format(", {} cancelled", result.cancelled) : "", result.duration_s,
                     result.interrupted ? " (interrupted)" : "");
  for (const auto& [kind, failure] : result.failures)
    out += fmt::format("  {:>6} x {}: {}\n", failure.count, kind, brief(failure.example));
  out +=
      fmt::format("tokens       {} input ({:.1f} a request), {} output ({:.1f} of {:.1f} asked for), {:.2f} an event\n",
                  result.input_tokens, each(result.input_tokens, result.completed), result.output_tokens,
                  each(result.output_tokens, result.completed), each(result.requested_output_tokens, result.completed),
                  each(result.output_tokens, result.events));
  if (result.without_usage > 0)
    out += fmt::format("             {} answers had no usage: their events count as tokens\n", result.without_usage);
  out += fmt::format("throughput   {:.2f} requests/s, {:.1f} output tokens/s, {:.1f} tokens/s in total\n\n",
                     rates.requests_per_s, rates.output_tokens_per_s, rates.total_tokens_per_s);
  out += fmt::format("{:<24} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "ms", "mean", "p50", "p90", "p99", "max");
  for (const Metric& metric : metrics_of(result)) {
    out +=
        fmt::format("{:<24} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f}\n", metric.title, mean_ms(metric.samples),
                    ms(metric.samples, 0.5), ms(metric.samples, 0.9), ms(metric.samples, 0.99), ms(metric.samples, 1));
  }
  return out;
}

std::string serve_json(const ServeRun& run, const LoadResult& result) {
  const ServeRates rates = rates_of(result);
  Json failures = Json::object();
  for (const auto& [kind, failure] : result.failures)
    failures[kind] = {{"count", failure.count}, {"example", failure.example}};
  const auto lengths = [](LengthRange range) { return Json::array({range.least, range.most}); };
  Json root{{"machine", machine()},
            {"url", run.url},
            {"model_id", run.model},
            {"endpoint_type", run.endpoint_type},
            {"dataset_path", run.dataset},
            {"input_len", lengths(run.input)},
            {"output_len", lengths(run.output)},
            {"max_concurrency", run.max_concurrency},
            {"request_rate", run.request_rate > 0 ? Json(run.request_rate) : Json("inf")},
            {"seed", run.seed},
            {"duration", result.duration_s},
            {"interrupted", result.interrupted},
            {"completed", result.completed},
            {"failed", result.failed},
            {"cancelled", result.cancelled},
            {"failures", std::move(failures)},
            {"peak_concurrency", result.peak_concurrency},
            {"total_input_tokens", result.input_tokens},
            {"total_output_tokens", result.output_tokens},
            {"requested_output_tokens", result.requested_output_tokens},
            {"events", result.events},
            {"answers_without_usage", result.without_usage},
            {"request_throughput", rates.requests_per_s},
            {"output_throughput", rates.output_tokens_per_s},
            {"total_token_throughput", rates.total_tokens_per_s}};
  for (const Metric& metric : metrics_of(result)) {
    const std::string name = std::string(metric.key) + "_ms";
    root["mean_" + name] = mean_ms(metric.samples);
    root["median_" + name] = ms(metric.samples, 0.5);
    root["p50_" + name] = ms(metric.samples, 0.5);
    root["p90_" + name] = ms(metric.samples, 0.9);
    root["p99_" + name] = ms(metric.samples, 0.99);
    root["max_" + name] = ms(metric.samples, 1);
  }
  // Texts of a server may hold anything.
  return root.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace dyn::app::bench

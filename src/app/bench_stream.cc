#include "app/bench_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "app/bench_arguments.h"
#include "app/bench_engine.h"
#include "app/bench_serve.h"
#include "app/bench_stream_protocol.h"
#include "app/bench_stream_report.h"
#include "app/bench_stream_senders.h"
#include "app/bench_stream_sink.h"

namespace dyn::app::bench {
namespace {

using std::chrono::milliseconds;

constexpr std::string_view kUsage =
    R"(Usage: dynamo-trtllm bench stream [options]
       dynamo-trtllm bench sink --instance-dir DIR [options]
       dynamo-trtllm bench engine --model DIR [options]      (bench engine --help)
       dynamo-trtllm bench serve --url URL --model NAME [options]  (bench serve --help)

bench stream measures the token path of this worker: a mock engine hands out one token a stream and step, the worker
writes it over loopback TCP, a sink in a process of its own reads it. Beside it, in the same run and at the same pace, a
bare send(2) loop writes the same frames to the same sink.

  --streams N[,N...]       concurrent streams, a list to sweep        [1,32,256,2048]
  --tokens-per-second N    of all streams together; steps are at least 1 ms long  [25000]
  --step-ms X              length of a step, instead of the above
  --duration S             measured window of each run, seconds       [3]
  --rounds N               runs of each sender; medians are reported  [5]
  --net-threads N          network threads of the worker              [1]
  --codec json|msgpack     of the stream items                        [msgpack]
  --baseline               only the bare send loop
  --no-baseline            only the worker
  --no-pin                 let the scheduler place both sides; otherwise the sink has the last CPU to itself
  --max-ratio X            exit status 1 when CPU per token is above X times the bare send loop's
  --max-p99-ms X           exit status 1 when the worker's p99 is above
  --json                   JSON instead of a table

bench sink plays the frontend for a worker of any kind that is registered in a file store: the records in
DIR/v1/instances tell where it listens and which codec it wants.

  --instance-dir DIR       root of the file store
  --namespace NS --component C --endpoint E    which endpoint         [any, any, generate]
  --model NAME             in the requests                            [bench]
  --streams N              concurrent streams                         [128]
  --tokens N               tokens each stream asks for                [1000]
  --prompt-tokens N        length of each prompt                      [16]
  --pid PID                the worker's process, whose CPU time is measured
  --step-ms X              the worker's pace if known: the window is cut in its pauses
  --settle S               streaming before the window opens          [1]
  --duration S             measured window, seconds                   [5]
  --wait S                 how long to wait for the record            [30]
  --stamps                 token ids are microseconds of CLOCK_MONOTONIC modulo 2^31: measure latency
  --json
)";

struct Options {
  std::vector<unsigned> streams;
  double tokens_per_second = 25'000;
  double step_ms = 0;  // 0: from tokens_per_second
  double duration_s = 0;
  unsigned rounds = 5;
  unsigned net_threads = 1;
  Codec codec = Codec::kMsgpack;
  bool worker = true;
  bool baseline = true;
  bool pin = true;
  double max_ratio = 0;
  double max_p99_ms = 0;
  bool json = false;
  // sink
  std::string instance_dir;
  InstanceFilter filter;
  std::string model = "bench";
  uint32_t tokens = 1000;
  uint32_t prompt_tokens = 16;
  pid_t pid = 0;
  double settle_s = 1;
  double wait_s = 30;
  bool stamps = false;
};

milliseconds to_ms(double seconds) {
  return milliseconds(static_cast<int64_t>(seconds * 1e3));
}

Result<Options> parse(std::span<const std::string_view> args, bool sink) {
  constexpr unsigned kMaxStreams = 16'384;
  Options options;
  options.streams = sink ? std::vector<unsigned>{128} : std::vector<unsigned>{1, 32, 256, 2048};
  options.duration_s = sink ? 5 : 3;
  ArgumentReader reader(args);
  while (reader.more()) {
    const std::string_view name = reader.next();
    Result<void> done;
    if (name == "--streams")
      done = reader.take_list(options.streams, kMaxStreams);
    else if (name == "--step-ms")
      done = reader.take(options.step_ms, 0.01, 60'000.0);
    else if (name == "--duration")
      done = reader.take(options.duration_s, 0.1, 3600.0);
    else if (name == "--json")
      options.json = true;
    else if (!sink && name == "--tokens-per-second")
      done = reader.take(options.tokens_per_second, 1.0, 1e8);
    else if (!sink && name == "--rounds")
      done = reader.take(options.rounds, 1U, 1000U);
    else if (!sink && name == "--net-threads")
      done = reader.take(options.net_threads, 1U, 256U);
    else if (!sink && name == "--codec")
      done = reader.take_choice(options.codec, {{"json", Codec::kJson}, {"msgpack", Codec::kMsgpack}});
    else if (!sink && name == "--baseline")
      options.worker = false;
    else if (!sink && name == "--no-baseline")
      options.baseline = false;
    else if (!sink && name == "--no-pin")
      options.pin = false;
    else if (!sink && name == "--max-ratio")
      done = reader.take(options.max_ratio, 0.0, 1e6);
    else if (!sink && name == "--max-p99-ms")
      done = reader.take(options.max_p99_ms, 0.0, 1e6);
    else if (sink && name == "--instance-dir")
      done = reader.take(options.instance_dir);
    else if (sink && name == "--namespace")
      done = reader.take(options.filter.ns);
    else if (sink && name == "--component")
      done = reader.take(options.filter.component);
    else if (sink && name == "--endpoint")
      done = reader.take(options.filter.endpoint);
    else if (sink && name == "--model")
      done = reader.take(options.model);
    else if (sink && name == "--tokens")
      done = reader.take(options.tokens, 1U, 100'000'000U);
    else if (sink && name == "--prompt-tokens")
      done = reader.take(options.prompt_tokens, 1U, 1'000'000U);
    else if (sink && name == "--pid")
      done = reader.take(options.pid, 1, 1 << 22);
    else if (sink && name == "--settle")
      done = reader.take(options.settle_s, 0.0, 3600.0);
    else if (sink && name == "--wait")
      done = reader.take(options.wait_s, 0.0, 3600.0);
    else if (sink && name == "--stamps")
      options.stamps = true;
    else
      return invalid_argument("unknown option " + std::string(name));
    if (auto checked = reader.finish(done); !checked) return checked.error();
  }
  if (!options.worker && !options.baseline)
    return invalid_argument("--baseline and --no-baseline leave nothing to run");
  if (sink && options.instance_dir.empty()) return invalid_argument("--instance-dir is needed");
  if (sink && options.streams.size() != 1) return invalid_argument("--streams: the sink takes one number");
  return options;
}

// What stands in for a worker's frame when only the bare loop runs: the item a worker writes for a plain token.
FrameTemplate plain_frame(Codec codec) {
  const std::string_view json = R"({"data":{"data":{"token_ids":[123456789]}},"complete_final":false})";
  const std::string_view msgpack =
      "\x82\xa4"
      "data\x81\xa4"
      "data\x81\xa9"
      "token_ids\x91\xce\x01\x02\x03\x04\xae"
      "complete_final\xc2";
  return *FrameTemplate::from_item(as_bytes(codec == Codec::kJson ? json : msgpack), codec);
}

// One sweep entry: both senders, alternately.
class StreamRun {
 public:
  StreamRun(const Options& options, unsigned streams) : options_(options), frame_(plain_frame(options.codec)) {
    const double step_ms =
        options.step_ms > 0 ? options.step_ms : std::max(1.0, 1e3 * streams / options.tokens_per_second);
    // Streams start one after the other; each must outlive the window.
    const double ramp_s = 0.5 + streams / 1500.0;
    const double lifetime_s = ramp_s + kSettleS + options.duration_s + 0.3;
    sender_.streams = streams;
    sender_.step = std::chrono::nanoseconds(static_cast<int64_t>(step_ms * 1e6));
    sender_.tokens_per_stream = static_cast<uint32_t>(lifetime_s * 1e3 / step_ms) + 4;
    sender_.net_threads = options.net_threads;
    sender_.pin = options.pin;
    result_.streams = streams;
    result_.step_ms = step_ms;
  }

  Result<StreamResult> run() {
    for (unsigned round = 0; round < options_.rounds; ++round) {
      // Neither sender always goes first; the first round needs the worker's frame for the bare loop.
      for (const bool worker : {round % 2 == 0, round % 2 != 0}) {
        if (worker ? !options_.worker : !options_.baseline) continue;
        auto report = worker ? run_worker_once() : run_bare_once();
        if (!report) return report.error().with_context(worker ? "worker" : "bare send loop");
        if (report->window_cut_short) return internal_error("streams ended inside the window: the machine is too slow");
        if (!report->lossless()) {
          return internal_error(fmt::format("{} tokens lost, {} extra, {} out of order, {} streams unfinished",
                                            report->lost_tokens, report->extra_tokens, report->misordered,
                                            report->unfinished));
        }
        if (worker && !report->sample_item.empty()) {
          auto frame = FrameTemplate::from_item(report->sample_item, options_.codec);
          if (frame) frame_ = std::move(*frame);
        }
        (worker ? result_.worker : result_.bare).push_back(summarize(*report));
        const RunSummary& run = (worker ? result_.worker : result_.bare).back();
        std::fprintf(stderr, "%5u streams  %-9s  %6.2f us CPU per token  p99 %.0f us\n", sender_.streams,
                     worker ? "worker" : "bare send", run.cpu_us_per_token, run.p99_us);
      }
    }
    return result_;
  }

 private:
  static constexpr double kSettleS = 0.4;

  [[nodiscard]] SinkOptions sink_options() const {
    SinkOptions sink;
    sink.streams = sender_.streams;
    sink.tokens_per_stream = sender_.tokens_per_stream;
    sink.codec = options_.codec;
    sink.step = std::chrono::duration_cast<std::chrono::microseconds>(sender_.step);
    sink.settle = to_ms(kSettleS);
    sink.window = to_ms(options_.duration_s);
    return sink;
  }

  Result<SinkReport> run_worker_once() {
    auto child = Child::start([&](int control) { return run_worker(sender_, control); });
    if (!child) return child.error();
    auto address = child->read_line(std::chrono::seconds(20));
    if (!address) return address.error();
    auto target = parse_target(*address);
    if (!target) return target.error();
    target->codec = options_.codec;
    SinkOptions sink_options = this->sink_options();
    sink_options.pid = child->pid();
    Sink sink(sink_options);
    if (auto done = sink.listen(); !done) return done.error();
    auto report = sink.run({*target});
    if (!report) return report;
    if (auto done = child->finish(); !done) return done.error();
    return report;
  }

  Result<SinkReport> run_bare_once() {
    SinkOptions sink_options = this->sink_options();
    Sink sink(sink_options);
    if (auto done = sink.listen(); !done) return done.error();
    auto child = Child::start([&](int) { return run_bare_sender(sender_, sink.address(), frame_); });
    if (!child) return child.error();
    sink.measure(child->pid());
    auto report = sink.run({});
    if (!report) return report;
    if (auto done = child->finish(); !done) return done.error();
    return report;
  }

  const Options& options_;
  SenderConfig sender_;
  FrameTemplate frame_;
  StreamResult result_;
};

int fail(const Error& error) {
  std::fprintf(stderr, "bench: %s\n", error.message.c_str());
  return 1;
}

int bench_stream(const Options& options) {
  if (options.pin) pin_to_side(Side::kSink);
  std::vector<StreamResult> results;
  for (const unsigned streams : options.streams) {
    auto result = StreamRun(options, streams).run();
    if (!result) return fail(result.error().with_context(std::to_string(streams) + " streams"));
    results.push_back(std::move(*result));
  }
  std::puts((options.json ? to_json(results) : to_table(results)).c_str());
  int status = 0;
  for (const StreamResult& row : results) {
    if (options.max_ratio > 0 && row.ratio() > options.max_ratio) {
      std::fprintf(stderr, "%u streams: ratio %.2f is above %.2f\n", row.streams, row.ratio(), options.max_ratio);
      status = 1;
    }
    const double p99_ms = median_of(row.worker).p99_us / 1e3;
    if (options.max_p99_ms > 0 && p99_ms > options.max_p99_ms) {
      std::fprintf(stderr, "%u streams: p99 %.2f ms is above %.2f ms\n", row.streams, p99_ms, options.max_p99_ms);
      status = 1;
    }
  }
  return status;
}

int bench_sink(const Options& options) {
  std::vector<Target> targets;
  const auto end = std::chrono::steady_clock::now() + to_ms(options.wait_s);
  while ((targets = read_instances(options.instance_dir, options.filter)).empty()) {
    if (std::chrono::steady_clock::now() >= end)
      return fail({Code::kNotFound, "no TCP record of endpoint '" + options.filter.endpoint + "' in " +
                                        options.instance_dir + "/v1/instances"});
    std::this_thread::sleep_for(milliseconds(50));
  }
  SinkOptions sink_options;
  sink_options.streams = options.streams.front();
  sink_options.tokens_per_stream = options.tokens;
  sink_options.model = options.model;
  sink_options.prompt_tokens = options.prompt_tokens;
  sink_options.pid = options.pid;
  sink_options.stamped = options.stamps;
  sink_options.step = std::chrono::microseconds(static_cast<int64_t>(options.step_ms * 1e3));
  sink_options.settle = to_ms(options.settle_s);
  sink_options.window = to_ms(options.duration_s);
  Sink sink(sink_options);
  if (auto done = sink.listen(); !done) return fail(done.error());
  auto report = sink.run(targets);
  if (!report) return fail(report.error());
  std::puts((options.json ? sink_json(*report) : sink_table(*report)).c_str());
  return report->lossless() && !report->window_cut_short ? 0 : 1;
}

}  // namespace

int run_bench(std::span<const std::string_view> args) {
  const std::string_view mode = args.empty() ? "" : args.front();
  if (mode == "engine") return run_bench_engine(args.subspan(1));
  if (mode == "serve") return run_bench_serve(args.subspan(1));
  const auto wants_help = [](std::string_view arg) { return arg == "--help" || arg == "-h"; };
  if (std::ranges::any_of(args, wants_help)) {
    std::fwrite(kUsage.data(), 1, kUsage.size(), stdout);
    return 0;
  }
  if (mode != "stream" && mode != "sink") {
    std::fprintf(stderr, "bench: %s; it is 'bench stream', 'bench sink', 'bench engine' or 'bench serve', see --help\n",
                 args.empty() ? "what?" : ("unknown benchmark '" + std::string(mode) + "'").c_str());
    return 2;
  }
  const auto options = parse(args.subspan(1), mode == "sink");
  if (!options) {
    std::fprintf(stderr, "bench %s: %s; see --help\n", std::string(mode).c_str(), options.error().message.c_str());
    return 2;
  }
  return mode == "sink" ? bench_sink(*options) : bench_stream(*options);
}

}  // namespace dyn::app::bench

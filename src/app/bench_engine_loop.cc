#include "app/bench_engine_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "app/bench_arguments.h"
#include "native/exec/cpu/cpu_executor.h"
#include "native/exec/cuda/cuda_executor.h"

namespace dyn::app::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kFirstPrompt = 16;

uint32_t micros(Clock::duration time) {
  return static_cast<uint32_t>(
      std::clamp<int64_t>(std::chrono::duration_cast<std::chrono::microseconds>(time).count(), 0, UINT32_MAX));
}

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Notes when tokens come. Requests of a round are numbered from 0; the engine's thread writes, the other one reads
// after wait_all().
class TokenClock final : public engine::Observer {
 public:
  struct Times {
    Clock::time_point submitted;
    Clock::time_point first;
    Clock::time_point last;
    uint32_t tokens = 0;
  };

  void begin(uint64_t first_id, size_t requests) {
    const std::lock_guard lock(mutex_);
    first_id_ = first_id;
    times_.assign(requests, {});
    open_ = requests;
  }
  void submitted(size_t request) {
    const std::lock_guard lock(mutex_);
    times_[request].submitted = Clock::now();
  }
  Result<std::vector<Times>> wait_all() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return open_ == 0 || failed_; });
    if (failed_) return error_;
    return std::move(times_);
  }

  void on_step(const engine::StepOutput& step) noexcept override {
    const auto now = Clock::now();
    const std::lock_guard lock(mutex_);
    for (const engine::RequestOutput& output : step.requests) {
      const uint64_t request = output.id - first_id_;
      if (output.id < first_id_ || request >= times_.size()) continue;
      Times& times = times_[request];
      if (!output.tokens.empty()) {
        if (times.tokens == 0) times.first = now;
        times.last = now;
        times.tokens += static_cast<uint32_t>(output.tokens.size());
      }
      if (output.error != nullptr) fail(*output.error);
      if (output.finish != engine::FinishReason::kNone && open_ > 0) --open_;
    }
    if (open_ == 0 || failed_) ended_.notify_all();
  }
  void on_fatal(const Error& error) noexcept override {
    const std::lock_guard lock(mutex_);
    fail(error);
    ended_.notify_all();
  }

 private:
  void fail(const Error& error) {
    if (!failed_) error_ = error;
    failed_ = true;
  }

  std::mutex mutex_;
  std::condition_variable ended_;
  uint64_t first_id_ = 0;
  std::vector<Times> times_;
  size_t open_ = 0;
  bool failed_ = false;
  Error error_;
};

class LoadRunner {
 public:
  LoadRunner(engine::Engine& engine, TokenClock& clock) : engine_(engine), clock_(clock) {}

  Result<std::vector<TokenClock::Times>> round(const EngineLoad& load) {
    const uint64_t first_id = next_id_;
    clock_.begin(first_id, load.sequences);
    for (uint32_t i = 0; i < load.sequences; ++i) {
      engine::Request request;
      request.id = next_id_++;
      request.sampling.temperature = 0;
      request.max_tokens = load.output;
      request.token_ids.reserve(load.input);
      for (uint32_t t = 0; t < load.input; ++t) {
        random_ = random_ * 6'364'136'223'846'793'005U + 1'442'695'040'888'963'407U;
        request.token_ids.push_back(static_cast<uint32_t>(random_ >> 33) % engine_.caps().vocab_size);
      }
      clock_.submitted(i);
      if (auto done = engine_.submit(std::move(request)); !done) return done.error();
    }
    return clock_.wait_all();
  }

  Result<EngineLoadRun> run(const EngineLoad& load, double seconds) {
    EngineLoadRun run{.load = load};
    const CpuShares cpus;
    do {
      auto times = round(load);
      if (!times) return times.error();
      Clock::time_point first = times->front().submitted;
      Clock::time_point last = first;
      for (const TokenClock::Times& one : *times) {
        if (one.tokens != load.output)
          return internal_error(fmt::format("{} tokens came, {} were asked for", one.tokens, load.output));
        first = std::min(first, one.submitted);
        last = std::max(last, one.last);
        run.ttft_us.push_back(micros(one.first - one.submitted));
        if (one.tokens > 1) run.tpot_us.push_back(micros((one.last - one.first) / (one.tokens - 1)));
      }
      run.seconds += seconds_between(first, last);
      run.output_tokens += uint64_t{load.sequences} * load.output;
      run.input_tokens += uint64_t{load.sequences} * load.input;
      ++run.rounds;
    } while (run.seconds < seconds);
    cpus.write_to(run.own_cpus, run.others_cpus);
    std::ranges::sort(run.ttft_us);
    std::ranges::sort(run.tpot_us);
    return run;
  }

 private:
  engine::Engine& engine_;
  TokenClock& clock_;
  uint64_t next_id_ = 1;
  uint64_t random_ = 42;
};

void fit(native::LoadOptions& options, const std::vector<EngineLoad>& loads) {
  options.max_batch_size = 1;
  uint64_t pool_tokens = 0;
  for (const EngineLoad& load : loads) {
    options.max_batch_size = std::max(options.max_batch_size, load.sequences);
    const uint64_t blocks = (uint64_t{load.input} + load.output) / options.tokens_per_block + 2;
    pool_tokens = std::max(pool_tokens, load.sequences * blocks * options.tokens_per_block);
  }
  if (options.max_num_tokens != 0) options.max_num_tokens = std::max(options.max_num_tokens, options.max_batch_size);
  options.kv_cache_max_tokens = pool_tokens + 8 * uint64_t{options.tokens_per_block};
}

}  // namespace

Result<std::vector<EngineLoad>> parse_engine_loads(std::string_view name, std::string_view text) {
  std::vector<EngineLoad> loads;
  while (true) {
    const size_t comma = text.find(',');
    const std::string_view one = text.substr(0, comma);
    const size_t first = one.find(':');
    const size_t second = first == std::string_view::npos ? first : one.find(':', first + 1);
    if (second == std::string_view::npos)
      return invalid_argument(fmt::format("{}: '{}' is not sequences:input:output", name, one));
    auto sequences = parse_number<uint32_t>(name, one.substr(0, first), 1, 1024);
    if (!sequences) return sequences.error();
    auto input = parse_number<uint32_t>(name, one.substr(first + 1, second - first - 1), 1, 1U << 20);
    if (!input) return input.error();
    auto output = parse_number<uint32_t>(name, one.substr(second + 1), 1, 1U << 20);
    if (!output) return output.error();
    loads.push_back({.sequences = *sequences, .input = *input, .output = *output});
    if (comma == std::string_view::npos) return loads;
    text.remove_prefix(comma + 1);
  }
}

Result<EngineLevelReport> measure_engine(native::LoadOptions options, const std::vector<EngineLoad>& loads,
                                         double seconds) {
  fit(options, loads);
  EngineLevelReport report;
  forget_peak_memory();
  const auto start = Clock::now();
  auto loaded = native::load_engine(options);
  if (!loaded) return loaded.error();
  engine::Engine& engine = *loaded->engine;
  const auto loaded_at = Clock::now();
  report.load_s = seconds_between(start, loaded_at);
  const engine::Caps caps = engine.caps();
  report.weight_bytes = loaded->weight_bytes;
  report.kv_pool_tokens = caps.total_kv_blocks * caps.kv_block_size;
  report.kv_pool_bytes =
      caps.total_kv_blocks * (loaded->on_gpu
                                  ? native::cuda_kv_bytes_per_page(loaded->config, caps.kv_block_size)
                                  : native::kv_bytes_per_page(loaded->config, caps.kv_block_size, loaded->cpu_path));
  for (const EngineLoad& load : loads) {
    if (load.input + uint64_t{load.output} > caps.max_seq_len)
      return invalid_argument(fmt::format("a load of {} and {} tokens: the model's context is {}", load.input,
                                          load.output, caps.max_seq_len));
  }

  TokenClock clock;
  if (auto started = engine.start(clock); !started) return started.error();
  report.warm_up_s = seconds_between(loaded_at, Clock::now());
  LoadRunner runner(engine, clock);
  const auto measure = [&]() -> Result<void> {
    const EngineLoad first{.input = std::min(kFirstPrompt, caps.max_seq_len - 1), .output = 1};
    auto times = runner.round(first);
    if (!times) return times.error();
    report.first_token_s = seconds_between(times->front().submitted, times->front().first);
    for (const EngineLoad& load : loads) {
      auto run = runner.run(load, seconds);
      if (!run) return run.error();
      std::fprintf(stderr, "engine %4u x (%u + %u)  %8.1f output tokens/s\n", load.sequences, load.input, load.output,
                   run->output_tokens_per_s());
      report.runs.push_back(*std::move(run));
    }
    return {};
  };
  const auto measured = measure();
  engine.stop();
  if (!measured) return measured.error();
  report.resident = read_resident_memory();
  return report;
}

}  // namespace dyn::app::bench

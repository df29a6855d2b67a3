#include "app/bench_engine_measure.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "app/bench_stream_stats.h"
#include "native/exec/step_driver.h"

namespace dyn::app::bench {
namespace {

using Clock = std::chrono::steady_clock;
using native::StepDriver;

constexpr uint32_t kDecodePrompt = 16;
constexpr uint32_t kDecodeSequenceSteps = 4096;  // steps times batch
constexpr uint32_t kLeastDecodeSteps = 64;
constexpr uint32_t kMostDecodeSteps = 512;

StepDriver::Options sequence(const native::ModelConfig& config, uint32_t tokens, uint32_t seed) {
  StepDriver::Options options;
  for (uint32_t i = 0; i < tokens; ++i) {
    const uint32_t mixed = (seed * 7919 + i + 1) * 2'654'435'761U;
    options.prompt.push_back((mixed >> 8) % config.vocab_size);
  }
  return options;
}

// Runs steps and adds up what they take.
class Meter {
 public:
  Meter(native::Executor& executor, const native::ModelConfig& config, EngineRun& run)
      : executor_(executor), config_(config), run_(run) {}

  double step(StepDriver& driver, const std::vector<std::pair<StepDriver::Sequence*, size_t>>& rows) {
    const auto start = Clock::now();
    driver.step(rows);
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    run_.seconds += took;
    run_.work.bytes += executor_.active_bytes(driver.plan());
    run_.work.flops += step_flops(config_, driver.plan());
    return took;
  }
  void sample(double seconds) { run_.samples_us.push_back(static_cast<uint32_t>(std::min(seconds * 1e6, 4e9))); }

 private:
  native::Executor& executor_;
  const native::ModelConfig& config_;
  EngineRun& run_;
};

void check_finite(const StepDriver::Sequence& s) {
  if (s.not_finite) throw std::runtime_error("the logits are not finite");
}

uint64_t read_own_ns() {
  const auto own = read_process_usage(::getpid());
  return own ? own->cpu_ns : 0;
}

// StepDriver throws; exceptions stay here.
template <class Body>
Result<EngineRun> measured(EngineRun run, const Body& body) {
  const CpuShares cpus;
  try {
    body(run);
  } catch (const std::exception& e) {
    return internal_error(e.what());
  }
  cpus.write_to(run.own_cpus, run.others_cpus);
  std::ranges::sort(run.samples_us);
  return run;
}

}  // namespace

CpuShares::CpuShares() : own_ns_(read_own_ns()), machine_ns_(read_machine_cpu_ns()), start_(Clock::now()) {}

void CpuShares::write_to(double& own_cpus, double& others_cpus) const {
  const double passed_ns = std::chrono::duration<double, std::nano>(Clock::now() - start_).count();
  const auto own_ns = static_cast<double>(read_own_ns() - own_ns_);
  own_cpus = own_ns / passed_ns;
  others_cpus = std::max(0.0, (static_cast<double>(read_machine_cpu_ns() - machine_ns_) - own_ns) / passed_ns);
}

uint64_t step_flops(const native::ModelConfig& config, const native::StepPlan& plan) {
  const uint64_t hidden = config.hidden_size;
  const uint64_t layer_weights =
      hidden * config.qkv_size() + hidden * config.q_size() + 3 * hidden * config.intermediate_size;
  uint64_t visible = 0;  // summed over tokens
  for (size_t r = 0; r < plan.num_rows(); ++r) {
    const uint64_t tokens = plan.row_offsets[r + 1] - plan.row_offsets[r];
    const auto context = static_cast<uint64_t>(plan.context_lens[r]);
    visible += tokens * context - tokens * (tokens - 1) / 2;  // the last token sees all, each before it one less
  }
  return config.num_layers * (2 * plan.num_tokens() * layer_weights + 4 * visible * config.q_size()) +
         2 * plan.samples.size() * hidden * config.vocab_size;
}

Result<EngineRun> measure_prompt(native::Executor& executor, const native::ModelConfig& config, uint32_t tokens,
                                 double seconds) {
  const uint32_t step_tokens = std::min(tokens, executor.limits().max_num_tokens);
  return measured({.prompt = tokens, .step_tokens = step_tokens}, [&](EngineRun& run) {
    Meter meter(executor, config, run);
    uint32_t runs = 0;
    do {
      StepDriver driver(executor);
      StepDriver::Sequence& s = driver.add(sequence(config, tokens, runs++));
      double until_first = 0;
      while (s.generated.empty())
        until_first += meter.step(driver, {{&s, std::min<size_t>(s.left(), executor.limits().max_num_tokens)}});
      check_finite(s);
      meter.sample(until_first);
      run.tokens += tokens;
    } while (run.seconds < seconds);
  });
}

Result<EngineRun> measure_decode(native::Executor& executor, const native::ModelConfig& config,
                                 const DecodeShape& shape, double seconds) {
  StepDriver driver(executor);
  std::vector<std::pair<StepDriver::Sequence*, size_t>> rows;
  try {
    std::vector<std::pair<StepDriver::Sequence*, size_t>> chunk;
    uint32_t chunk_tokens = 0;
    const auto prefill = [&] {
      if (!chunk.empty()) driver.step(chunk);
      chunk.clear();
      chunk_tokens = 0;
    };
    for (uint32_t i = 0; i < shape.batch; ++i) {
      if (chunk_tokens + shape.prompt > executor.limits().max_num_tokens) prefill();
      StepDriver::Sequence& s = driver.add(sequence(config, shape.prompt, i));
      chunk.emplace_back(&s, shape.prompt);
      chunk_tokens += shape.prompt;
      rows.emplace_back(&s, 1);
    }
    prefill();
  } catch (const std::exception& e) {
    return internal_error(e.what()).with_context("prompts");
  }
  return measured({.batch = shape.batch, .prompt = shape.prompt, .step_tokens = shape.batch}, [&](EngineRun& run) {
    Meter meter(executor, config, run);
    for (uint32_t step = 0; step == 0 || (step < shape.steps && run.seconds < seconds); ++step) {
      meter.sample(meter.step(driver, rows));
      run.tokens += shape.batch;
    }
    for (const auto& [s, count] : rows) check_finite(*s);
  });
}

DecodeShape decode_shape(uint32_t batch, uint32_t max_positions) {
  DecodeShape shape{.batch = batch};
  shape.prompt = std::clamp(max_positions / 4, 1U, kDecodePrompt);
  const uint32_t room = max_positions > shape.prompt ? max_positions - shape.prompt : 1;
  shape.steps = std::min(std::clamp(kDecodeSequenceSteps / batch, kLeastDecodeSteps, kMostDecodeSteps), room);
  return shape;
}

uint64_t pages_needed(const std::vector<unsigned>& prompts, const std::vector<DecodeShape>& decodes,
                      uint32_t tokens_per_block) {
  const auto pages = [&](uint64_t tokens) { return (tokens + tokens_per_block - 1) / tokens_per_block; };
  uint64_t most = 1;
  for (const unsigned prompt : prompts) most = std::max(most, pages(prompt));
  for (const DecodeShape& shape : decodes)
    most = std::max(most, shape.batch * pages(uint64_t{shape.prompt} + shape.steps));
  return most;
}

ResidentMemory read_resident_memory() {
  ResidentMemory memory;
  uint64_t total_pages = 0;
  uint64_t resident_pages = 0;
  std::ifstream("/proc/self/statm") >> total_pages >> resident_pages;
  memory.now_bytes = resident_pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  // Not getrusage: its maximum cannot be reset.
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "VmHWM:") continue;
    status >> memory.peak_bytes;
    memory.peak_bytes *= 1024;
    break;
  }
  return memory;
}

void forget_peak_memory() {
  std::ofstream("/proc/self/clear_refs") << "5";  // resets VmHWM; elsewhere the peak is that of the whole process
}

}  // namespace dyn::app::bench

// LoadGenerator: sends a workload to an OpenAI endpoint at a concurrency or a rate, and collects what came of it.
//
//   LoadGenerator load({.endpoint = where, .max_concurrency = 8, .num_prompts = 100}, workload);
//   load.start();
//   while (!load.wait(20ms)) {
//     if (interrupted()) load.interrupt();
//   }
//   LoadResult result = load.result();
//
// With a rate, requests arrive as a Poisson process of that rate (the gaps are exponential, drawn from the seed); those
// beyond max_concurrency wait here, and their time counts from their sending. Without one, max_concurrency requests
// are always under way. Ownership: the workload outlives the generator, which owns a loop with its thread. Thread
// rules: all calls from one thread; interrupt() from any.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "app/bench_serve_answer.h"
#include "app/bench_serve_workload.h"
#include "net/http_client.h"

namespace dyn::app::bench {

struct LoadOptions {
  net::HttpEndpoint endpoint = {};
  std::string path = {};     // in front of the workload's target
  std::string api_key = {};  // "" for none
  unsigned max_concurrency = 1;
  double request_rate = 0;   // a second; 0: as fast as answers come
  uint64_t num_prompts = 0;  // 0: no limit
  double duration_s = 0;     // no request starts later; 0: no limit
  std::chrono::milliseconds timeout{600'000};
  uint64_t seed = 0;
  uint64_t first_request = 0;  // its number in the workload
};

struct FailureCount {
  uint64_t count = 0;
  std::string example;
};

struct LoadResult {
  double duration_s = 0;  // from the first sending to the last answer's end
  uint64_t completed = 0;
  uint64_t failed = 0;
  uint64_t cancelled = 0;
  bool interrupted = false;
  unsigned peak_concurrency = 0;
  std::map<std::string, FailureCount> failures;  // by kind
  // Of completed requests:
  uint64_t input_tokens = 0;
  uint64_t output_tokens = 0;
  uint64_t requested_output_tokens = 0;
  uint64_t events = 0;            // with text
  uint64_t without_usage = 0;     // requests; their output tokens are events, their input tokens unknown
  std::vector<uint32_t> ttft_us;  // ascending, as all of them
  std::vector<uint32_t> tpot_us;
  std::vector<uint32_t> itl_us;
  std::vector<uint32_t> e2el_us;
};

struct LoadProgress {
  uint64_t completed = 0;
  uint64_t failed = 0;
};

class LoadGenerator {
 public:
  LoadGenerator(LoadOptions options, const Workload& workload);
  ~LoadGenerator();
  LoadGenerator(const LoadGenerator&) = delete;
  LoadGenerator& operator=(const LoadGenerator&) = delete;

  void start();
  // Whether all is done.
  bool wait(std::chrono::milliseconds limit);
  // Starts no more requests and cancels those under way.
  void interrupt();
  [[nodiscard]] LoadProgress progress() const;
  // After wait() was true.
  LoadResult result();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dyn::app::bench

// LoadMeter: tells a person how far loading has come: a bar on a terminal, else a log line every few seconds.
//
//   LoadMeter meter(/*terminal=*/true);
//   load_weights(config, directory, {.progress = [&](uint64_t done, uint64_t total) { meter.update(done, total); }});
//   meter.finish();                          // the bar is taken away
//
// Writes to standard error. Thread rules: one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace dyn::native {

// " 43 %  1.3 of 3.0 GB  3.2 GB/s  1 s left"; GB are 10^9 bytes, as for bandwidths.
std::string progress_text(uint64_t done_bytes, uint64_t total_bytes, double seconds);
// "[######------]" of `width` characters between the brackets.
std::string progress_bar(uint64_t done_bytes, uint64_t total_bytes, unsigned width);

class LoadMeter {
 public:
  explicit LoadMeter(bool terminal) : terminal_(terminal) {}
  void update(uint64_t done_bytes, uint64_t total_bytes);
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  const bool terminal_;
  bool drawn_ = false;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace dyn::native

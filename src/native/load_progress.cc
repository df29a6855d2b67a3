#include "native/load_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "base/log.h"
#include "base/posix.h"

namespace dyn::native {
namespace {

constexpr std::chrono::milliseconds kBetweenDrawings{100};
constexpr std::chrono::seconds kBetweenLines{5};
constexpr unsigned kBarWidth = 30;
constexpr char kClearLine[] = "\r\x1b[K";

double share(uint64_t done, uint64_t total) {
  return total == 0 ? 1.0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
}

}  // namespace

std::string progress_text(uint64_t done_bytes, uint64_t total_bytes, double seconds) {
  const double done = static_cast<double>(done_bytes) / 1e9;
  const double total = static_cast<double>(total_bytes) / 1e9;
  std::string text =
      fmt::format("{:3.0f} %  {:.1f} of {:.1f} GB", std::floor(100 * share(done_bytes, total_bytes)), done, total);
  if (done_bytes == 0 || !(seconds > 0)) return text;
  const double rate = done / seconds;
  return text + fmt::format("  {:.1f} GB/s  {:.0f} s left", rate, std::ceil(std::max(0.0, total - done) / rate));
}

std::string progress_bar(uint64_t done_bytes, uint64_t total_bytes, unsigned width) {
  const auto filled = static_cast<unsigned>(std::floor(share(done_bytes, total_bytes) * width));
  return "[" + std::string(filled, '#') + std::string(width - filled, '-') + "]";
}

void LoadMeter::update(uint64_t done_bytes, uint64_t total_bytes) {
  const auto now = Clock::now();
  if (now - last_ < (terminal_ ? Clock::duration(kBetweenDrawings) : Clock::duration(kBetweenLines))) return;
  last_ = now;
  const std::string text = progress_text(done_bytes, total_bytes, std::chrono::duration<double>(now - start_).count());
  if (!terminal_) {
    DYN_INFO("engine", "loading weights: {}", text);
    return;
  }
  drawn_ = true;
  // Nobody is there to be told when the terminal is gone.
  (void)write_all(STDERR_FILENO, fmt::format("{}loading weights {} {}", kClearLine,
                                             progress_bar(done_bytes, total_bytes, kBarWidth), text));
}

void LoadMeter::finish() {
  if (drawn_) (void)write_all(STDERR_FILENO, kClearLine);
  drawn_ = false;
}

}  // namespace dyn::native

// The processes under test of `bench stream`: a bare send(2) loop, and a worker with a mock engine. Each is forked from
// the single-threaded bench process, so that its CPU time is its own.
//
//   auto child = Child::start([&](int control) { return run_bare_sender(config, address, frame); });
//   ... child->pid() ... child->finish();
//
// Ownership: Child owns the process; the destructor ends it. Thread rules: start() only while the process has one
// thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>

#include "app/bench_stream_protocol.h"
#include "base/posix.h"
#include "base/result.h"

namespace dyn::app::bench {

// Where the two sides of a run may execute: the sink on the last usable CPU, the process under test on the others, as
// if the frontend ran on another machine. Without it the scheduler often puts the sink on the sender's CPU, and both
// figures and latencies depend on its whim. Does nothing with one CPU.
enum class Side : uint8_t { kSink, kSender };
void pin_to_side(Side side);

class Child {
 public:
  // Runs `body` in a forked process and exits with what it returns. `control` is the child's end of a socket pair: the
  // parent reads lines from it; when the parent closes its end or dies, the child reads end-of-file.
  static Result<Child> start(const std::function<int(int control)>& body);
  Child(Child&&) noexcept;
  Child& operator=(Child&&) = delete;
  ~Child();

  [[nodiscard]] pid_t pid() const { return pid_; }
  // One line the child wrote, without its newline; kUnavailable when it has ended or says nothing in time.
  Result<std::string> read_line(std::chrono::milliseconds limit);
  // Closes the control socket and waits; an error names the exit status. A child that does not end is killed.
  Result<void> finish(std::chrono::milliseconds limit = std::chrono::seconds(20));

 private:
  Child(pid_t pid, UniqueFd control) : pid_(pid), control_(std::move(control)) {}
  pid_t pid_ = -1;
  UniqueFd control_;
  std::string pending_;
};

struct SenderConfig {
  unsigned streams = 1;
  uint32_t tokens_per_stream = 0;
  std::chrono::nanoseconds step{};
  unsigned net_threads = 1;  // worker only
  bool pin = true;           // pin_to_side(kSender)
};

// Child body. Every step: one frame to each of N connections, in one burst, by plain send(2). The floor a worker is
// compared with.
int run_bare_sender(const SenderConfig& config, const std::string& sink_address, const FrameTemplate& frame);

// Child body. The worker's token path as served: TCP request plane, handler, response streams, mock engine whose token
// ids are time stamps. Writes the endpoint's address as one line to `control`, serves until its end-of-file.
int run_worker(const SenderConfig& config, int control);

}  // namespace dyn::app::bench

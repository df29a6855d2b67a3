// TerminationSignals: SIGTERM and SIGINT, and requests from inside, as values that the control thread waits for.
//
//   auto signals = TerminationSignals::install();            // once, early in main()
//   ...
//   signals->request({.text = "the engine died", .fatal = true});   // any thread
//   ...
//   return run_until_terminated(*signals, shutdown);         // waits, shuts down; the second signal hurries
//
// The first signal asks, the second hurries, after that the system's default is back: a third ends the process at once.
// SIGPIPE is ignored (a write to a closed socket is an error value), no other signal is touched. Child processes get
// the default actions. Ownership: one object a process at a time; its destruction restores what was there before.
// Thread rules: install() and destruction on the main thread; request() from any; wait() from one thread at a time.
#pragma once

#include <csignal>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "base/posix.h"
#include "base/result.h"
#include "runtime/lifecycle.h"

namespace dyn::runtime {

class TerminationSignals {
 public:
  static Result<std::unique_ptr<TerminationSignals>> install();
  ~TerminationSignals();
  TerminationSignals(const TerminationSignals&) = delete;
  TerminationSignals& operator=(const TerminationSignals&) = delete;

  // The next signal or request; nothing after cancel_wait().
  std::optional<ShutdownReason> wait();
  void request(ShutdownReason reason);
  // Ends the wait() that runs, or else the next one.
  void cancel_wait();

 private:
  TerminationSignals(UniqueFd reader, UniqueFd writer) : reader_(std::move(reader)), writer_(std::move(writer)) {}

  UniqueFd reader_;
  UniqueFd writer_;
  struct sigaction old_term_{};
  struct sigaction old_int_{};
  struct sigaction old_pipe_{};
  std::mutex mutex_;
  std::deque<ShutdownReason> requests_;
};

// Waits for the first reason, runs the shutdown, hurries it at the next reason. The caller ends the process by
// end_process() when the outcome is incomplete.
Shutdown::Outcome run_until_terminated(TerminationSignals& signals, Shutdown& shutdown);

}  // namespace dyn::runtime

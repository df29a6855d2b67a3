// Stepper: the single-threaded core of an engine that works in steps. SteppedEngine gives it a thread and the Engine
// interface; a test can drive it by hand.
//
//   stepper.submit(request);
//   StepOutput out;
//   while (stepper.alive() > 0) { auto turn = stepper.turn(out); if (turn->has_output) look_at(out); }
//
// Requests that arrive here were checked by SteppedEngine: a prompt that leaves room for a token, ids below the
// vocabulary, 1 <= max_tokens, prompt + max_tokens <= max_seq_len. Thread rules: one thread at a time.
#pragma once

#include <chrono>

#include "engine/engine.h"

namespace dyn::engine {

struct Turn {
  bool has_output = false;  // `out` is to be handed out
  bool idle = false;        // nothing to do before the next command
  // Nothing to do before this time (or a command); the default is "at once".
  std::chrono::steady_clock::time_point not_before;
};

class Stepper {
 public:
  virtual ~Stepper() = default;

  [[nodiscard]] virtual Caps caps() const = 0;

  // Once, on the control thread, before the first turn: warm-up. An error keeps the engine from starting.
  virtual Result<void> prepare() { return {}; }

  virtual void submit(Request request) = 0;
  // Unknown ids are ignored.
  virtual void abort(RequestId id) = 0;

  // Does one piece of work, at most one step. The spans of `out` live until the next call of any member. An error is
  // the end of the engine.
  virtual Result<Turn> turn(StepOutput& out) = 0;

  // Requests submitted, and neither ended nor aborted.
  [[nodiscard]] virtual size_t alive() const = 0;
  [[nodiscard]] virtual Stats stats() const = 0;
};

}  // namespace dyn::engine

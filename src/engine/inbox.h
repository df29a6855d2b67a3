// Inbox: how net threads hand commands to the one engine thread. Lock-free, unbounded (the owner bounds what it
// accepts).
//
//   inbox.push(Command::submit(std::move(request)));   // any thread; wakes an engine that sleeps
//   inbox.take(commands);                              // engine thread: everything pushed so far, in order
//   inbox.wait_until(deadline);                        // engine thread, with nothing to do
//
// The order of commands is one for all threads: an abort pushed after a submit returned is taken after it, whichever
// threads they came from. (A queue that is only ordered per producer would lose such an abort.) It is a stack that the
// consumer takes whole and reverses, so there is no ABA problem, and a push is one allocation and one exchange.
// Ownership: owns the commands in it. Thread rules: push() and wake() from any thread, the rest from one thread.
#pragma once

#include <atomic>
#include <vector>

#include "engine/engine.h"
#include "engine/event_count.h"

namespace dyn::engine {

struct Command {
  enum class Kind : uint8_t { kSubmit, kAbort };
  Kind kind = Kind::kSubmit;
  Request request;  // of kAbort: only the id

  static Command submit(Request request) { return {Kind::kSubmit, std::move(request)}; }
  static Command abort(RequestId id) {
    Command command{Kind::kAbort, {}};
    command.request.id = id;
    return command;
  }
};

class Inbox {
 public:
  using TimePoint = EventCount::TimePoint;

  Inbox() = default;
  ~Inbox();
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  void push(Command command);
  // Ends a wait_until() without a command.
  void wake() noexcept;

  // Appends all commands to `out`, oldest first.
  void take(std::vector<Command>& out);
  // Until there is a command, wake() was called since the last wait, or the deadline.
  void wait_until(TimePoint deadline);

 private:
  struct Node {
    Command command;
    Node* next;
  };

  std::atomic<Node*> top_{nullptr};
  std::atomic<bool> woken_{false};
  EventCount events_;
};

}  // namespace dyn::engine

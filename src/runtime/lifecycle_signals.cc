#include "runtime/lifecycle_signals.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/threads.h"

namespace dyn::runtime {
namespace {

constexpr char kLog[] = "lifecycle";

// What is written into the pipe beside signal numbers.
constexpr unsigned char kRequest = 0;
constexpr unsigned char kCancel = 255;

// For the handler, which may touch nothing but these.
std::atomic<int> g_pipe{-1};
std::atomic<int> g_seen{0};
static_assert(std::atomic<int>::is_always_lock_free);

void restore_default(int signal) {
  struct sigaction action{};
  action.sa_handler = SIG_DFL;
  ::sigaction(signal, &action, nullptr);
}

void on_signal(int signal) {
  const int saved_errno = errno;
  if (g_seen.fetch_add(1) >= 1) {
    restore_default(SIGTERM);
    restore_default(SIGINT);
  }
  const auto byte = static_cast<unsigned char>(signal);
  // The pipe is full only after thousands of signals that nobody read.
  (void)!::write(g_pipe.load(), &byte, 1);
  errno = saved_errno;
}

}  // namespace

Result<std::unique_ptr<TerminationSignals>> TerminationSignals::install() {
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error("cannot make the pipe for signals", errno);
  UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  // Only the writing end: a handler must not block, wait() does.
  if (::fcntl(writer.get(), F_SETFL, O_NONBLOCK) != 0) return errno_error("cannot set up the pipe for signals", errno);
  int none = -1;
  if (!g_pipe.compare_exchange_strong(none, writer.get())) {
    return internal_error("the termination signals are already waited for in this process");
  }
  g_seen = 0;
  std::unique_ptr<TerminationSignals> signals(new TerminationSignals(std::move(reader), std::move(writer)));
  struct sigaction action{};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  ::sigemptyset(&action.sa_mask);
  ::sigaddset(&action.sa_mask, SIGTERM);
  ::sigaddset(&action.sa_mask, SIGINT);
  struct sigaction ignore{};
  ignore.sa_handler = SIG_IGN;
  if (::sigaction(SIGTERM, &action, &signals->old_term_) != 0 ||
      ::sigaction(SIGINT, &action, &signals->old_int_) != 0 ||
      ::sigaction(SIGPIPE, &ignore, &signals->old_pipe_) != 0) {
    return errno_error("cannot handle termination signals", errno);
  }
  return signals;
}

TerminationSignals::~TerminationSignals() {
  ::sigaction(SIGTERM, &old_term_, nullptr);
  ::sigaction(SIGINT, &old_int_, nullptr);
  ::sigaction(SIGPIPE, &old_pipe_, nullptr);
  g_pipe = -1;
}

std::optional<ShutdownReason> TerminationSignals::wait() {
  for (;;) {
    unsigned char byte = 0;
    const ssize_t got = ::read(reader_.get(), &byte, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got != 1) return ShutdownReason{"the pipe for signals broke: " + errno_text(errno), true};
    if (byte == kCancel) return std::nullopt;
    if (byte == kRequest) {
      const std::lock_guard lock(mutex_);
      ShutdownReason reason = std::move(requests_.front());
      requests_.pop_front();
      return reason;
    }
    return ShutdownReason{byte == SIGINT ? "SIGINT" : "SIGTERM", false};
  }
}

void TerminationSignals::request(ShutdownReason reason) {
  const std::lock_guard lock(mutex_);
  const unsigned char byte = kRequest;
  // Full: thousands of requests wait already, one more tells nothing new.
  if (::write(writer_.get(), &byte, 1) == 1) requests_.push_back(std::move(reason));
}

void TerminationSignals::cancel_wait() {
  const unsigned char byte = kCancel;
  (void)!::write(writer_.get(), &byte, 1);
}

Shutdown::Outcome run_until_terminated(TerminationSignals& signals, Shutdown& shutdown) {
  const ShutdownReason reason = signals.wait().value_or(ShutdownReason{"nobody waits for a signal any more", false});
  std::thread second([&] {
    set_thread_name("signals");
    if (const auto again = signals.wait()) {
      DYN_WARN(kLog, "{} during the shutdown: ending now, running streams are cut", again->text);
      shutdown.hurry();
    }
  });
  const auto outcome = shutdown.run(reason);
  signals.cancel_wait();
  second.join();
  return outcome;
}

}  // namespace dyn::runtime

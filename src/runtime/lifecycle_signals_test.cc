#include "runtime/lifecycle_signals.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <functional>
#include <thread>
#include <utility>

namespace dyn::runtime {
namespace {

// Signals belong to a process, so each test has one. Its exit status, or the negative signal that ended it.
int in_child(const std::function<int()>& body) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(TerminationSignals, SignalsBecomeValues) {
  EXPECT_EQ(in_child([] {
              auto signals = TerminationSignals::install();
              if (!signals) return 1;
              ::raise(SIGTERM);
              const auto first = (*signals)->wait();
              if (!first || first->text != "SIGTERM" || first->fatal) return 2;
              ::raise(SIGINT);
              const auto second = (*signals)->wait();
              return second && second->text == "SIGINT" ? 0 : 3;
            }),
            0);
}

TEST(TerminationSignals, TheThirdEndsTheProcess) {
  EXPECT_EQ(in_child([] {
              auto signals = TerminationSignals::install();
              ::raise(SIGTERM);
              ::raise(SIGTERM);
              ::raise(SIGTERM);
              return 0;
            }),
            -SIGTERM);
}

TEST(TerminationSignals, BrokenPipesAreErrorsAndOtherSignalsUntouched) {
  EXPECT_EQ(in_child([] {
              std::array<int, 2> ends{};
              auto signals = TerminationSignals::install();
              if (::pipe(ends.data()) != 0) return 1;
              ::close(ends[0]);
              if (::write(ends[1], "x", 1) != -1 || errno != EPIPE) return 2;
              struct sigaction action{};
              ::sigaction(SIGHUP, nullptr, &action);
              return action.sa_handler == SIG_DFL ? 0 : 3;
            }),
            0);
}

TEST(TerminationSignals, RequestsAreWaitedForLikeSignals) {
  EXPECT_EQ(in_child([] {
              auto signals = TerminationSignals::install();
              std::thread asker([&] { (*signals)->request({"the engine died", true}); });
              const auto reason = (*signals)->wait();
              asker.join();
              (*signals)->cancel_wait();
              if ((*signals)->wait()) return 1;
              return reason && reason->fatal && reason->text == "the engine died" ? 0 : 2;
            }),
            0);
}

TEST(TerminationSignals, OnlyOnceAtATimeAndRestoredAtTheEnd) {
  EXPECT_EQ(in_child([] {
              {
                auto signals = TerminationSignals::install();
                if (!signals || TerminationSignals::install()) return 1;
              }
              if (!TerminationSignals::install()) return 2;
              ::raise(SIGTERM);  // the default again
              return 3;
            }),
            -SIGTERM);
}

TEST(RunUntilTerminated, TheFirstSignalShutsDownTheSecondHurries) {
  EXPECT_EQ(in_child([] {
              auto signals = TerminationSignals::install();
              ShutdownActions actions;
              actions.drain = [](std::chrono::milliseconds) {
                static bool raised = false;
                // The second, to the process: without it this would take an hour. A third would kill.
                if (!std::exchange(raised, true)) ::kill(::getpid(), SIGTERM);
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
                return false;
              };
              actions.end_streams = [] {};
              Shutdown shutdown(graceful_steps(
                  {.grace_period = std::chrono::milliseconds(0), .drain_limit = std::chrono::hours(1)}, actions));
              ::raise(SIGTERM);
              const auto outcome = run_until_terminated(**signals, shutdown);
              return outcome.complete ? outcome.exit_code : 9;
            }),
            0);
}

TEST(RunUntilTerminated, AFatalRequestIsExitCode1) {
  EXPECT_EQ(in_child([] {
              auto signals = TerminationSignals::install();
              Shutdown shutdown(graceful_steps({.grace_period = std::chrono::hours(1)}, {}));
              (*signals)->request({"lost the lease", true});
              return run_until_terminated(**signals, shutdown).exit_code;
            }),
            1);
}

}  // namespace
}  // namespace dyn::runtime

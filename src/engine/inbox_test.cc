#include "engine/inbox.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace dyn::engine {
namespace {

TEST(Inbox, KeepsTheOrderOfEachThreadAndLosesNothing) {
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kEach = 5'000;
  Inbox inbox;
  std::vector<std::thread> producers;
  producers.reserve(kThreads);
  for (uint64_t t = 0; t < kThreads; ++t) {
    producers.emplace_back([&inbox, t] {
      for (uint64_t i = 0; i < kEach; ++i) inbox.push(Command::abort(t * kEach + i));
    });
  }
  std::vector<uint64_t> next(kThreads, 0);
  std::vector<Command> commands;
  for (uint64_t seen = 0; seen < kThreads * kEach;) {
    inbox.wait_until(Inbox::TimePoint::max());  // hangs the test when a wake-up is lost
    commands.clear();
    inbox.take(commands);
    for (const Command& command : commands) {
      const uint64_t thread = command.request.id / kEach;
      ASSERT_EQ(command.request.id % kEach, next[thread]++);
    }
    seen += commands.size();
  }
  for (auto& producer : producers) producer.join();
}

// An abort must not overtake its submit, even when they come from different threads.
TEST(Inbox, OrderHoldsAcrossThreads) {
  Inbox inbox;
  std::vector<Command> commands;
  for (int round = 0; round < 500; ++round) {
    std::thread submitter([&] { inbox.push(Command::submit({.id = 1})); });
    submitter.join();
    std::thread aborter([&] { inbox.push(Command::abort(1)); });
    aborter.join();
    commands.clear();
    inbox.take(commands);
    ASSERT_EQ(commands.size(), 2U);
    ASSERT_EQ(commands[0].kind, Command::Kind::kSubmit);
    ASSERT_EQ(commands[1].kind, Command::Kind::kAbort);
  }
}

TEST(Inbox, WakeEndsOneWait) {
  Inbox inbox;
  inbox.wake();
  inbox.wait_until(Inbox::TimePoint::max());
  // Used up: only the deadline ends the next one.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
  inbox.wait_until(deadline);
  EXPECT_GE(std::chrono::steady_clock::now(), deadline);
}

TEST(Inbox, FreesWhatNobodyTook) {
  Inbox inbox;
  for (int i = 0; i < 10; ++i) inbox.push(Command::submit({.token_ids = std::vector<TokenId>(100)}));
}

}  // namespace
}  // namespace dyn::engine

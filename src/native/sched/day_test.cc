// A day of traffic through the scheduler: office hours and quiet nights, short questions and long documents, tenants
// with common system prompts, three priorities, several choices, clients that go away. No model, no clock: seeds only.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numbers>
#include <random>
#include <set>

#include "native/sched/scheduler.h"

namespace dyn::native {
namespace {

constexpr uint32_t kBlock = 16;
constexpr double kDaySeconds = 86'400;
constexpr double kStepSeconds = 0.4;  // of an empty step
constexpr double kTokenSeconds = 0.002;

struct DayCase {
  CapacityPolicy policy;
  uint32_t pages;
  uint32_t window;
  double requests_per_second;  // at noon
};

class SchedulerDay : public ::testing::TestWithParam<DayCase> {
 protected:
  static constexpr SchedulerLimits kLimits{.max_batch_size = 24, .max_num_tokens = 512};
  static constexpr uint32_t kMaxLength = 1200;

  SchedulerDay()
      : limits_{.max_batch_size = kLimits.max_batch_size,
                .max_num_tokens = kLimits.max_num_tokens,
                .policy = GetParam().policy,
                .window = GetParam().window},
        blocks_({.num_pages = GetParam().pages, .tokens_per_block = kBlock, .record_events = false}),
        scheduler_(limits_, blocks_) {}

  uint32_t below(uint32_t limit) { return static_cast<uint32_t>(random_() % limit); }
  double chance() { return static_cast<double>(random_() >> 5) / static_cast<double>(1u << 27); }

  // Few at night, most at noon.
  [[nodiscard]] double rate() const {
    const double hour = 2 * std::numbers::pi * (seconds_ / kDaySeconds - 0.25);
    return GetParam().requests_per_second * (0.55 + 0.45 * std::sin(hour));
  }

  void arrive() {
    const uint32_t tenant = below(6);
    const uint32_t system = 40 * tenant;
    const uint32_t question = below(10) == 0 ? 1 + below(700) : 1 + below(60);
    const uint32_t prompt = std::max(1U, std::min(system + question, kMaxLength - 1));
    const uint32_t answer = 1 + below(std::min(below(8) == 0 ? 400U : 60U, kMaxLength - prompt));
    const uint32_t choices = below(12) == 0 ? 2 + below(3) : 1;
    const int32_t priority = below(20) == 0 ? 1 : below(4) == 0 ? -1 : 0;
    const uint64_t id = ++requests_;
    std::vector<TokenId> tokens;
    for (uint32_t i = 0; i < prompt; ++i) {
      tokens.push_back(i < system ? 1000 * tenant + i : static_cast<TokenId>(random_()));
    }
    std::vector<Sequence*> added;
    for (uint32_t choice = 0; choice < choices; ++choice) {
      Sequence& s = *alive_.emplace_back(std::make_unique<Sequence>());
      s.id = id;
      s.choice = choice;
      s.state = choice == 0 ? SequenceState::kWaiting : SequenceState::kBound;
      s.prompt_length = prompt;
      s.max_length = prompt + answer;
      s.priority = priority;
      s.arrival = ++arrivals_;
      s.tokens = tokens;
      s.table = blocks_.make_table({});
      if (choice > 0) added.front()->followers.push_back(&s);
      added.push_back(&s);
      ++started_;
    }
    scheduler_.add(*added.front());
  }

  // A client goes away: all choices of its request.
  void abort_one() {
    if (alive_.empty()) return;
    const uint64_t id = alive_[below(static_cast<uint32_t>(alive_.size()))]->id;
    std::erase_if(alive_, [&](const auto& sequence) {
      if (sequence->id != id) return false;
      scheduler_.remove(*sequence);
      ++aborted_;
      return true;
    });
  }

  void check() {
    uint32_t tokens = 0;
    for (const ScheduledRow& row : schedule_.rows) {
      tokens += row.count;
      ASSERT_EQ(row.sequence->state, SequenceState::kRunning);
      const PageId page = row.sequence->table.pages()[row.begin / kBlock];
      ASSERT_NE(page, kNoPage);
      // Choices that begin with a row's sample share its pages already while it computes them.
      const bool forks = std::ranges::any_of(schedule_.forks, [&](const ScheduledFork& fork) {
        return schedule_.rows[fork.row].sequence == row.sequence;
      });
      ASSERT_TRUE(forks || blocks_.is_writable(page));
    }
    ASSERT_LE(tokens, limits_.max_num_tokens);
    ASSERT_LE(schedule_.rows.size(), limits_.max_batch_size);
    ASSERT_LE(scheduler_.num_running(), limits_.max_batch_size);
    // Something can always run; taking pages away never leads nowhere.
    ASSERT_TRUE(!schedule_.rows.empty() || alive_.empty() || !schedule_.preempted.empty());
    for (const Sequence* sequence : schedule_.admitted) {
      ASSERT_LE(sequence->overtaken, Scheduler::kMaxOvertakes);
      if (sequence->admissions > 1 || sequence->overtaken == Scheduler::kMaxOvertakes) continue;
      waited_most_ = std::max(waited_most_, seconds_ - arrived_at_[sequence->id]);
    }
  }

  void take(Sequence& sequence) {
    blocks_.commit(sequence.table, std::span(sequence.tokens).first(sequence.num_computed));
    --sequence.num_pending;
    sequence.tokens.push_back(static_cast<TokenId>(random_()));
    // Half of the answers stop early.
    if (sequence.tokens.size() < sequence.max_length && below(60) != 0) return;
    scheduler_.remove(sequence);
    ++finished_;
    over_.insert(&sequence);
  }

  void step() {
    scheduler_.schedule(schedule_);
    preemptions_ += schedule_.preempted.size();
    ASSERT_NO_FATAL_FAILURE(check());
    for (const ScheduledRow& row : schedule_.rows) {
      seconds_ += kTokenSeconds * row.count;
      if (row.samples) {
        take(*row.sequence);
      } else {
        blocks_.commit(row.sequence->table, std::span(row.sequence->tokens).first(row.begin + row.count));
      }
    }
    for (const ScheduledFork& fork : schedule_.forks) take(*fork.sequence);
    forks_ += schedule_.forks.size();
    if (!over_.empty()) std::erase_if(alive_, [&](const auto& sequence) { return over_.contains(sequence.get()); });
    over_.clear();
    seconds_ += kStepSeconds;
  }

  const SchedulerLimits limits_;
  BlockManager blocks_;
  Scheduler scheduler_;
  Schedule schedule_;
  std::mt19937 random_{20'26};
  std::vector<std::unique_ptr<Sequence>> alive_;
  std::set<const Sequence*> over_;
  std::map<uint64_t, double> arrived_at_;
  double seconds_ = 0;
  double waited_most_ = 0;
  uint64_t requests_ = 0;
  uint64_t arrivals_ = 0;
  uint64_t started_ = 0;
  uint64_t finished_ = 0;
  uint64_t aborted_ = 0;
  uint64_t preemptions_ = 0;
  uint64_t forks_ = 0;
};

TEST_P(SchedulerDay, EverybodyIsServed) {
  double next = 0;
  while (seconds_ < kDaySeconds || !alive_.empty()) {
    for (; next <= seconds_ && next < kDaySeconds; next += -std::log(1.0 - chance()) / rate()) {
      arrive();
      arrived_at_[requests_] = seconds_;
    }
    if (below(400) == 0) abort_one();
    if (alive_.empty()) {
      seconds_ = std::max(seconds_ + kStepSeconds, std::min(next, kDaySeconds));
      continue;
    }
    ASSERT_NO_FATAL_FAILURE(step());
    ASSERT_LT(seconds_, 1.5 * kDaySeconds) << "the queue does not become shorter at night";
  }
  EXPECT_GT(requests_, 10'000U);
  EXPECT_EQ(finished_ + aborted_, started_);
  EXPECT_GT(forks_, 100U);
  EXPECT_LT(waited_most_, 3 * 3600.0) << "rush hours are over after some hours";
  EXPECT_EQ(scheduler_.num_running() + scheduler_.num_waiting(), 0U);
  const BlockStats stats = blocks_.stats();
  EXPECT_EQ(stats.pages_referenced, 0U);
  EXPECT_EQ(stats.pages_free + stats.pages_cached, GetParam().pages);
  EXPECT_GT(stats.hits, 0U);
  EXPECT_GT(stats.tail_hits, 0U);
  EXPECT_EQ(blocks_.audit(), "");
  EXPECT_EQ(preemptions_ > 0, GetParam().policy == CapacityPolicy::kMaxUtilization) << preemptions_;
}

INSTANTIATE_TEST_SUITE_P(Cases, SchedulerDay,
                         ::testing::Values(DayCase{CapacityPolicy::kGuaranteedNoEvict, 260, 0, 0.6},
                                           DayCase{CapacityPolicy::kGuaranteedNoEvict, 260, 100, 0.6},
                                           DayCase{CapacityPolicy::kMaxUtilization, 180, 0, 0.6},
                                           DayCase{CapacityPolicy::kMaxUtilization, 100, 100, 0.6}));

}  // namespace
}  // namespace dyn::native

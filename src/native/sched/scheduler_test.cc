#include "native/sched/scheduler.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>

namespace dyn::native {
namespace {

constexpr uint32_t kBlock = 4;

// Drives a scheduler as the step loop does, with a model that answers at once.
class Driver {
 public:
  Driver(const SchedulerLimits& of, uint32_t num_pages, bool reuse = true)
      : limits(of),
        blocks({.num_pages = num_pages, .tokens_per_block = kBlock, .enable_reuse = reuse, .record_events = false}),
        scheduler(of, blocks) {}
  ~Driver() {
    for (auto& [id, sequence] : sequences) scheduler.remove(*sequence);
  }

  Sequence& add(uint64_t id, uint32_t prompt, uint32_t answer, int32_t priority = 0, TokenId first = 0) {
    auto sequence = std::make_unique<Sequence>();
    sequence->id = id;
    sequence->prompt_length = prompt;
    sequence->max_length = prompt + answer;
    sequence->priority = priority;
    sequence->arrival = ++arrivals;
    sequence->tokens.resize(prompt);
    std::iota(sequence->tokens.begin(), sequence->tokens.end(), first);
    sequence->table = blocks.make_table({});
    Sequence& added = *sequence;
    sequences[id] = std::move(sequence);
    scheduler.add(added);
    return added;
  }

  void remove(uint64_t id) {
    scheduler.remove(*sequences.at(id));
    sequences.erase(id);
  }

  // One step; gives ids and counts of its rows.
  std::vector<std::pair<uint64_t, uint32_t>> step() {
    scheduler.schedule(schedule);
    check();
    std::vector<std::pair<uint64_t, uint32_t>> rows;
    for (const ScheduledRow& row : schedule.rows) {
      Sequence& sequence = *row.sequence;
      rows.emplace_back(sequence.id, row.count);
      blocks.commit(sequence.table, std::span(sequence.tokens).first(row.begin + row.count));
      if (!row.samples) continue;
      --sequence.num_pending;
      sequence.tokens.push_back(static_cast<TokenId>(1000 + sequence.id));
      if (sequence.tokens.size() == sequence.max_length) {
        finished.push_back(sequence.id);
        remove(sequence.id);
      }
    }
    return rows;
  }

  void check() {
    uint32_t tokens = 0;
    std::set<uint64_t> seen;
    bool prefill = false;
    for (const ScheduledRow& row : schedule.rows) {
      const Sequence& sequence = *row.sequence;
      ASSERT_TRUE(seen.insert(sequence.id).second) << "two rows";
      ASSERT_EQ(sequence.state, SequenceState::kRunning);
      ASSERT_GT(row.count, 0U);
      ASSERT_GE(sequence.table.pages().size() * kBlock, row.begin + row.count) << "pages are missing";
      for (uint32_t position = row.begin; position < row.begin + row.count; ++position) {
        ASSERT_TRUE(blocks.is_writable(sequence.table.pages()[position / kBlock])) << "a shared page";
      }
      // The last token is always computed.
      ASSERT_EQ(row.samples, row.begin + row.count == sequence.length() - (row.samples ? 1 : 0));
      prefill = prefill || row.count > 1;
      ASSERT_FALSE(prefill && row.count == 1 && row.begin >= sequence.prompt_length && row.begin > 0 &&
                   sequence.admissions == 1)
          << "decode rows come first";
      tokens += row.count;
    }
    for (const Sequence* sequence : schedule.admitted) {
      if (sequence->admissions > 1 || sequence->overtaken >= Scheduler::kMaxOvertakes) continue;
      ASSERT_GT(sequence->arrival, last_admitted[sequence->priority]) << "out of order";
      last_admitted[sequence->priority] = sequence->arrival;
    }
    ASSERT_LE(tokens, limits.max_num_tokens);
    ASSERT_LE(schedule.rows.size(), limits.max_batch_size);
    ASSERT_LE(scheduler.num_running(), limits.max_batch_size);
    for (size_t i = 1; i < scheduler.num_running(); ++i) {
      ASSERT_TRUE(goes_before(*scheduler.running()[i - 1], *scheduler.running()[i]));
    }
    ASSERT_EQ(blocks.audit(), "");
  }

  const SchedulerLimits limits;
  BlockManager blocks;
  Scheduler scheduler;
  Schedule schedule;
  std::map<uint64_t, std::unique_ptr<Sequence>> sequences;
  std::vector<uint64_t> finished;
  std::map<int32_t, uint64_t> last_admitted;
  uint64_t arrivals = 0;
};

using Rows = std::vector<std::pair<uint64_t, uint32_t>>;

TEST(Scheduler, DecodeFirstThenChunksWithinTheBudget) {
  Driver driver({.max_batch_size = 4, .max_num_tokens = 8}, 100);
  driver.add(1, 3, 5);
  EXPECT_EQ(driver.step(), (Rows{{1, 3}}));
  driver.add(2, 20, 5, 0, 100);
  driver.add(3, 4, 5, 0, 200);
  EXPECT_EQ(driver.step(), (Rows{{1, 1}, {2, 7}}));
  EXPECT_EQ(driver.step(), (Rows{{1, 1}, {2, 7}}));
  EXPECT_EQ(driver.step(), (Rows{{1, 1}, {2, 6}, {3, 1}}));
  EXPECT_EQ(driver.step(), (Rows{{1, 1}, {2, 1}, {3, 3}}));
  EXPECT_EQ(driver.step(), (Rows{{2, 1}, {3, 1}}));
}

TEST(Scheduler, AdmitsWhenPromptAndAnswerFit) {
  // 10 pages; each request may need 3 + 17 - 1 tokens, 5 pages.
  Driver driver({.max_batch_size = 8, .max_num_tokens = 64}, 10);
  for (uint64_t id = 1; id <= 3; ++id) driver.add(id, 3, 17, 0, static_cast<TokenId>(100 * id));
  EXPECT_EQ(driver.step(), (Rows{{1, 3}, {2, 3}}));
  driver.remove(1);
  EXPECT_EQ(driver.step(), (Rows{{2, 1}, {3, 3}}));
  while (!driver.sequences.empty()) ASSERT_FALSE(driver.step().empty());
  EXPECT_TRUE(driver.schedule.preempted.empty());
}

TEST(Scheduler, NobodyOvertakesTheHeadThatWaitsForPages) {
  Driver driver({.max_batch_size = 8, .max_num_tokens = 64}, 10);
  driver.add(1, 3, 17);
  driver.add(2, 30, 9, 0, 100);  // needs all ten pages
  driver.add(3, 1, 1, 0, 200);   // would fit at once
  while (driver.finished.size() < 3) ASSERT_FALSE(driver.step().empty());
  EXPECT_EQ(driver.finished, (std::vector<uint64_t>{1, 2, 3}));
}

TEST(Scheduler, SharedPrefixCountsOnce) {
  Driver driver({.max_batch_size = 8, .max_num_tokens = 64}, 10);
  driver.add(1, 25, 4);  // 7 pages, 6 of them prompt
  driver.step();
  driver.add(2, 25, 4);  // 6 of its pages are there
  EXPECT_EQ(driver.step(), (Rows{{1, 1}, {2, 1}}));
  EXPECT_EQ(driver.sequences.at(2)->cached_tokens, 24U);
}

TEST(Scheduler, PriorityThenArrival) {
  Driver driver({.max_batch_size = 1, .max_num_tokens = 64}, 100);
  driver.add(1, 2, 2);
  driver.step();
  driver.add(2, 2, 2, 0);
  driver.add(3, 2, 2, 7);
  driver.add(4, 2, 2, 0);
  driver.add(5, 2, 2, 7);
  driver.add(6, 2, 2, -3);
  while (!driver.sequences.empty()) driver.step();
  EXPECT_EQ(driver.finished, (std::vector<uint64_t>{1, 3, 5, 2, 4, 6}));
}

TEST(Scheduler, LowPriorityIsNotStarved) {
  Driver driver({.max_batch_size = 1, .max_num_tokens = 64}, 100);
  driver.add(1, 2, 1, -5);
  driver.add(2, 2, 1, 5);
  uint64_t next = 3;
  while (driver.sequences.contains(1)) {
    driver.add(next++, 2, 1, 5);
    driver.step();
    ASSERT_LT(next, 3 + 2 * Scheduler::kMaxOvertakes);
  }
  EXPECT_GE(driver.finished.size(), Scheduler::kMaxOvertakes);
}

TEST(Scheduler, MaxUtilizationPreemptsTheLastAndComputesItAnew) {
  Driver driver({.max_batch_size = 8, .max_num_tokens = 64, .policy = CapacityPolicy::kMaxUtilization}, 6, false);
  driver.add(1, 7, 10);
  driver.add(2, 7, 10);
  EXPECT_EQ(driver.step(), (Rows{{1, 7}, {2, 7}}));
  // 4 pages; each grows by one, so at the third page of the second the pool is full: 8 -> 9, 8 -> 9 tokens.
  bool preempted = false;
  uint32_t recomputed = 0;
  while (!driver.sequences.empty()) {
    const auto rows = driver.step();
    ASSERT_FALSE(rows.empty());
    for (const Sequence* sequence : driver.schedule.preempted) {
      preempted = true;
      if (driver.sequences.contains(2)) EXPECT_EQ(sequence->id, 2U);
    }
    for (const auto& [id, count] : rows) {
      if (preempted && count > 1) recomputed = count;
    }
  }
  EXPECT_TRUE(preempted);
  EXPECT_GT(recomputed, 7U);  // prompt and what was generated
  EXPECT_EQ(driver.finished, (std::vector<uint64_t>{1, 2}));
  EXPECT_EQ(driver.blocks.stats().pages_free, 6U);
}

struct PropertyCase {
  CapacityPolicy policy;
  uint32_t pages;
  uint32_t batch;
  uint32_t budget;
};

class SchedulerProperty : public ::testing::TestWithParam<PropertyCase> {};

// Random arrivals and aborts: the checks of Driver hold in every step, every sequence ends, and those of one priority
// are admitted in order of arrival.
TEST_P(SchedulerProperty, BudgetsProgressAndOrder) {
  const PropertyCase& param = GetParam();
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
  Driver driver({.max_batch_size = param.batch, .max_num_tokens = param.budget, .policy = param.policy}, param.pages);
  const uint32_t capacity = param.pages * kBlock;

  uint64_t next = 1;
  uint64_t preemptions = 0;
  uint64_t aborted = 0;
  for (uint32_t idle_steps = 0; next < 3000 || !driver.sequences.empty();) {
    while (next < 3000 && below(3) == 0) {
      const uint32_t prompt = 1 + below(std::min(40U, capacity - 1));
      const uint32_t answer = 1 + below(std::min(30U, capacity - prompt));
      driver.add(next++, prompt, answer, static_cast<int32_t>(below(3)), 10 * below(3));
    }
    if (!driver.sequences.empty() && below(30) == 0) {
      auto victim = driver.sequences.begin();
      std::advance(victim, below(static_cast<uint32_t>(driver.sequences.size())));
      driver.remove(victim->first);
      ++aborted;
    }
    const bool any = !driver.sequences.empty();
    const auto rows = driver.step();
    if (::testing::Test::HasFatalFailure()) return;
    // A step without rows happens only when it took pages away; never twice in a row.
    idle_steps = any && rows.empty() ? idle_steps + 1 : 0;
    ASSERT_LE(idle_steps, driver.schedule.preempted.empty() ? 0U : 1U);
    preemptions += driver.schedule.preempted.size();
  }
  EXPECT_EQ(driver.finished.size() + aborted, 2999U);
  if (param.policy == CapacityPolicy::kGuaranteedNoEvict) EXPECT_EQ(preemptions, 0U);
  EXPECT_EQ(driver.blocks.stats().pages_referenced, 0U);
}

INSTANTIATE_TEST_SUITE_P(Cases, SchedulerProperty,
                         ::testing::Values(PropertyCase{CapacityPolicy::kGuaranteedNoEvict, 20, 8, 16},
                                           PropertyCase{CapacityPolicy::kGuaranteedNoEvict, 500, 64, 64},
                                           PropertyCase{CapacityPolicy::kGuaranteedNoEvict, 18, 1, 1},
                                           PropertyCase{CapacityPolicy::kMaxUtilization, 18, 8, 16},
                                           PropertyCase{CapacityPolicy::kMaxUtilization, 40, 16, 100},
                                           PropertyCase{CapacityPolicy::kMaxUtilization, 500, 64, 64}));

}  // namespace
}  // namespace dyn::native

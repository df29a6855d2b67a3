#include "native/sched/scheduler.h"

#include <algorithm>
#include <cassert>
#include <limits>

namespace dyn::native {
namespace {

// Keeps the blocks of the long variant apart from those that others find. Routers learn of them as of any other salt.
constexpr char kLongVariantSalt[] = "\x1Flong-rope";

void insert_in_order(std::vector<Sequence*>& list, Sequence& sequence) {
  const auto at = std::upper_bound(list.begin(), list.end(), &sequence,
                                   [](const Sequence* a, const Sequence* b) { return goes_before(*a, *b); });
  list.insert(at, &sequence);
}

}  // namespace

void Schedule::clear() {
  rows.clear();
  forks.clear();
  copies.clear();
  admitted.clear();
  preempted.clear();
}

Scheduler::Scheduler(const SchedulerLimits& limits, BlockManager& blocks) : limits_(limits), blocks_(blocks) {
  assert(limits_.max_num_tokens >= limits_.max_batch_size && limits_.max_batch_size > 0);
  running_.reserve(limits_.max_batch_size);
}

void Scheduler::add(Sequence& sequence) {
  assert(blocks_.pages_for(sequence.max_kv_tokens()) <= blocks_.options().num_pages);
  sequence.state = SequenceState::kWaiting;
  insert_in_order(waiting_, sequence);
}

void Scheduler::remove(Sequence& sequence) {
  if (sequence.state == SequenceState::kEnded) return;
  if (sequence.state != SequenceState::kBound)
    std::erase(sequence.state == SequenceState::kRunning ? running_ : waiting_, &sequence);
  blocks_.release(sequence.table);
  sequence.state = SequenceState::kEnded;
}

void Scheduler::schedule(Schedule& schedule) {
  schedule.clear();
  budget_ = limits_.max_num_tokens;
  for (Sequence* sequence : running_) sequence->planned_now = false;

  send_back_outgrown(schedule);
  // Preemption shortens running_ behind the place where the loop stands, or at it.
  for (size_t i = 0; i < running_.size();) {
    Sequence& sequence = *running_[i];
    if (!sequence.planned_now && sequence.remaining() == 1 && make_room(sequence, schedule))
      plan(sequence, 1, schedule);
    if (i < running_.size() && running_[i] == &sequence) ++i;
  }
  for (Sequence* sequence : running_) {
    if (budget_ == 0) break;
    if (!sequence->planned_now && sequence->remaining() > 1) {
      plan(*sequence, std::min(sequence->remaining(), budget_), schedule);
    }
  }
  for (uint32_t row = 0, rows = static_cast<uint32_t>(schedule.rows.size()); row < rows; ++row) {
    fork_followers(row, schedule);
  }
  // Whoever lost its pages just now must not get them back in exchange for the next one's.
  if (schedule.preempted.empty()) admit_waiting(schedule);
  if (!schedule.rows.empty()) blocks_.take_copies(schedule.copies);
}

void Scheduler::send_back_outgrown(Schedule& schedule) {
  if (limits_.long_rope_from == 0) return;
  for (size_t i = running_.size(); i-- > 0;) {
    Sequence& sequence = *running_[i];
    if (!sequence.long_rope && sequence.remaining() > 0 && sequence.length() > limits_.long_rope_from)
      send_back(sequence, schedule);
  }
}

void Scheduler::choose_variant(Sequence& sequence) {
  assert(sequence.table.pages().empty());
  const bool long_rope = limits_.long_rope_from != 0 && sequence.length() > limits_.long_rope_from;
  if (long_rope == sequence.long_rope) return;
  sequence.long_rope = long_rope;
  sequence.table = blocks_.make_table(sequence.cache_salt + (long_rope ? kLongVariantSalt : ""));
}

void Scheduler::release_before_window(Sequence& sequence) {
  if (limits_.window != 0 && sequence.num_computed >= limits_.window)
    blocks_.release_before(sequence.table, sequence.num_computed + 1 - limits_.window);
}

void Scheduler::plan(Sequence& sequence, uint32_t count, Schedule& schedule) {
  assert(count > 0 && count <= budget_);
  release_before_window(sequence);
  const bool samples = count == sequence.remaining();
  schedule.rows.push_back({&sequence, sequence.num_computed, count, samples});
  sequence.planned_now = true;
  sequence.num_computed += count;
  if (samples) ++sequence.num_pending;
  budget_ -= count;
}

bool Scheduler::make_room(Sequence& sequence, Schedule& schedule) {
  release_before_window(sequence);
  while (!blocks_.grow(sequence.table, sequence.num_computed + 1)) {
    Sequence& last = *running_.back();
    preempt(last, schedule);
    if (&last == &sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence& sequence, Schedule& schedule) {
  assert(limits_.policy == CapacityPolicy::kMaxUtilization && "promised pages are missing");
  assert(!sequence.planned_now && "rows are planned in order of service, pages are taken from its end");
  send_back(sequence, schedule);
}

void Scheduler::send_back(Sequence& sequence, Schedule& schedule) {
  std::erase(running_, &sequence);
  blocks_.release(sequence.table);
  sequence.state = SequenceState::kWaiting;
  sequence.num_computed = 0;
  insert_in_order(waiting_, sequence);
  schedule.preempted.push_back(&sequence);
}

uint64_t Scheduler::promised_pages() const {
  if (limits_.policy == CapacityPolicy::kMaxUtilization) return 0;
  uint64_t pages = 0;
  for (const Sequence* sequence : running_) {
    pages += blocks_.pages_for(sequence->max_kv_tokens()) - sequence->table.pages().size();
  }
  return pages;
}

void Scheduler::admit_waiting(Schedule& schedule) {
  while (budget_ > 0 && running_.size() < limits_.max_batch_size && !waiting_.empty()) {
    Sequence& sequence = *waiting_.front();
    if (!admit(sequence)) return;
    waiting_.erase(waiting_.begin());
    count_overtake(sequence);
    insert_in_order(running_, sequence);
    schedule.admitted.push_back(&sequence);
    plan(sequence, std::min(sequence.remaining(), budget_), schedule);
    fork_followers(static_cast<uint32_t>(schedule.rows.size() - 1), schedule);
  }
}

void Scheduler::fork_followers(uint32_t row, Schedule& schedule) {
  Sequence& leader = *schedule.rows[row].sequence;
  if (leader.followers.empty() || !schedule.rows[row].samples) return;
  for (Sequence* follower : leader.followers) {
    const bool its_turn = waiting_.empty() || goes_before(*follower, *waiting_.front());
    if (its_turn && schedule.preempted.empty() && running_.size() < limits_.max_batch_size && fork(leader, *follower)) {
      insert_in_order(running_, *follower);
      schedule.admitted.push_back(follower);
      schedule.forks.push_back({row, follower});
    } else {
      add(*follower);
    }
  }
  leader.followers.clear();
}

bool Scheduler::fork(Sequence& leader, Sequence& follower) {
  const uint64_t shared = leader.prompt_length / blocks_.options().tokens_per_block;
  const uint64_t most = blocks_.pages_for(follower.max_kv_tokens());
  const uint64_t wanted = limits_.policy == CapacityPolicy::kGuaranteedNoEvict
                              ? most
                              : std::min(blocks_.pages_for(leader.prompt_length) + 1, most);
  if (wanted - shared + promised_pages() > blocks_.available_pages()) return false;
  // The first token is sampled already; the variant is the one that its prompt was computed with.
  follower.priority = leader.priority;
  follower.long_rope = leader.long_rope;
  follower.table = blocks_.make_table(leader.cache_salt + (leader.long_rope ? kLongVariantSalt : ""));
  blocks_.fork(leader.table, follower.table, leader.prompt_length);
  follower.num_computed = leader.prompt_length;
  follower.num_pending = 1;
  follower.admissions = 1;
  follower.state = SequenceState::kRunning;
  follower.slot_started = false;
  follower.planned_now = true;
  return true;
}

void Scheduler::count_overtake(const Sequence& admitted) {
  if (waiting_.empty()) return;
  Sequence* oldest = *std::ranges::min_element(waiting_, {}, &Sequence::arrival);
  if (oldest->arrival > admitted.arrival || ++oldest->overtaken < kMaxOvertakes) return;
  // For good: it must keep its pages too.
  std::erase(waiting_, oldest);
  oldest->priority = std::numeric_limits<int32_t>::max();
  insert_in_order(waiting_, *oldest);
}

bool Scheduler::admit(Sequence& sequence) {
  // A preempted one may have had a token in flight; it was collected before this schedule is made.
  assert(sequence.num_pending == 0);
  const std::span<const TokenId> known = sequence.tokens;
  const uint64_t most = blocks_.pages_for(sequence.max_kv_tokens());
  const uint64_t wanted =
      limits_.policy == CapacityPolicy::kGuaranteedNoEvict ? most : std::min(blocks_.pages_for(known.size()) + 1, most);
  choose_variant(sequence);
  const auto findable = sequence.wants_scores() ? known.first(0) : known;
  const uint64_t promised = promised_pages();
  const auto fits = [&](BlockManager::Tail tail) {
    const auto match = blocks_.match_prefix(sequence.table, findable, tail);
    return wanted - match.blocks + match.unreferenced + promised <= blocks_.available_pages();
  };
  // The source of a copy is held beside all pages of the sequence: where there is no room for that, it is left.
  auto tail = limits_.copy_tails ? BlockManager::Tail::kCopy : BlockManager::Tail::kLeave;
  if (!fits(tail)) {
    tail = BlockManager::Tail::kLeave;
    if (!limits_.copy_tails || !fits(tail)) return false;
  }
  const uint32_t found = blocks_.acquire_prefix(sequence.table, findable, tail);
  const bool grown = blocks_.grow(sequence.table, known.size());
  assert(grown);
  (void)grown;
  sequence.num_computed = found;
  if (sequence.admissions++ == 0) sequence.cached_tokens = found;
  sequence.state = SequenceState::kRunning;
  sequence.slot_started = false;
  return true;
}

}  // namespace dyn::native

#include "native/sched/scheduler.h"

#include <algorithm>
#include <cassert>
#include <limits>

namespace dyn::native {
namespace {

void insert_in_order(std::vector<Sequence*>& list, Sequence& sequence) {
  const auto at = std::upper_bound(list.begin(), list.end(), &sequence,
                                   [](const Sequence* a, const Sequence* b) { return goes_before(*a, *b); });
  list.insert(at, &sequence);
}

}  // namespace

void Schedule::clear() {
  rows.clear();
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
  std::erase(sequence.state == SequenceState::kRunning ? running_ : waiting_, &sequence);
  blocks_.release(sequence.table);
  sequence.state = SequenceState::kEnded;
}

void Scheduler::schedule(Schedule& schedule) {
  schedule.clear();
  budget_ = limits_.max_num_tokens;
  for (Sequence* sequence : running_) sequence->planned_now = false;

  // Preemption shortens running_ behind the place where the loop stands, or at it.
  for (size_t i = 0; i < running_.size();) {
    Sequence& sequence = *running_[i];
    if (sequence.remaining() == 1 && make_room(sequence, schedule)) plan(sequence, 1, schedule);
    if (i < running_.size() && running_[i] == &sequence) ++i;
  }
  for (Sequence* sequence : running_) {
    if (budget_ == 0) break;
    if (!sequence->planned_now && sequence->remaining() > 1) {
      plan(*sequence, std::min(sequence->remaining(), budget_), schedule);
    }
  }
  // Whoever lost its pages just now must not get them back in exchange for the next one's.
  if (schedule.preempted.empty()) admit_waiting(schedule);
}

void Scheduler::plan(Sequence& sequence, uint32_t count, Schedule& schedule) {
  assert(count > 0 && count <= budget_);
  const bool samples = count == sequence.remaining();
  schedule.rows.push_back({&sequence, sequence.num_computed, count, samples});
  sequence.planned_now = true;
  sequence.num_computed += count;
  if (samples) ++sequence.num_pending;
  budget_ -= count;
}

bool Scheduler::make_room(Sequence& sequence, Schedule& schedule) {
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
  }
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
  const auto match = blocks_.match_prefix(sequence.table, known);
  if (wanted - match.blocks + match.unreferenced + promised_pages() > blocks_.available_pages()) return false;

  const uint32_t found = blocks_.acquire_prefix(sequence.table, known);
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

// Scheduler: which sequences take part in the next step, with how many tokens.
//
//   Scheduler scheduler({.max_batch_size = 64, .max_num_tokens = 2048}, blocks);
//   scheduler.add(sequence);
//   scheduler.schedule(schedule);        // admits, preempts, reserves pages; see Schedule
//   scheduler.remove(sequence);          // it ended: its pages are free
//
// Decode rows come first, then chunks of prompts, in order of service (sequence.h), within max_num_tokens; then waiting
// sequences are admitted. Pages for a whole prompt are taken on admission, one more at a time while decoding.
//   kGuaranteedNoEvict  a sequence is admitted when prompt and longest possible answer fit beside all such promises.
//                       (Without max_tokens the longest possible answer is the rest of the context.)
//   kMaxUtilization     it is admitted when its known tokens and one more page fit; when pages run out the last in
//                       order of service loses its pages, waits again at its old place and is computed anew.
// A model all of whose layers have a window needs no pages before it: they are given back while a sequence runs, and
// can be found as a prefix until others need them. kGuaranteedNoEvict promises them all the same.
//
// The choices of a request share one prefill: in the step that computes the last token of the leader's prompt each of
// them gets a slot, the prompt's pages and a sample of that row, if there is room and nobody is to go before it.
// Otherwise it waits as others do.
//
// Where a longer text has other rotary angles (long_rope_from) a sequence that outgrows the border is computed anew;
// the cache keeps both variants apart.
//
// No starvation: the first in order never loses its pages to others; nobody overtakes a head of the queue that waits
// for pages; and a sequence that kMaxOvertakes later ones of higher priority overtook gets the highest priority.
// Deterministic: the result depends on the calls made so far and nothing else. Ownership: sequences and manager belong
// to the caller and must stay at their address. Thread rules: one thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "native/kv/block_manager.h"
#include "native/sched/sequence.h"

namespace dyn::native {

enum class CapacityPolicy : uint8_t { kGuaranteedNoEvict, kMaxUtilization };

struct SchedulerLimits {
  uint32_t max_batch_size = 0;
  uint32_t max_num_tokens = 0;  // not below max_batch_size
  CapacityPolicy policy = CapacityPolicy::kGuaranteedNoEvict;
  bool copy_tails = true;       // a prefix may end inside a block, which is copied
  uint32_t window = 0;          // positions a token sees, itself included; 0: all before it
  uint32_t long_rope_from = 0;  // longer sequences take the long variant; 0: there is none
};

struct ScheduledRow {
  Sequence* sequence = nullptr;
  uint32_t begin = 0;    // position of the first token
  uint32_t count = 0;    // tokens
  bool samples = false;  // the row ends with the last known token
};

// A choice that begins with a sample of its leader's row.
struct ScheduledFork {
  uint32_t row = 0;  // of Schedule::rows
  Sequence* sequence = nullptr;
};

struct Schedule {
  std::vector<ScheduledRow> rows;    // decode rows first
  std::vector<ScheduledFork> forks;  // in order of rows
  std::vector<PageCopy> copies;
  std::vector<Sequence*> admitted;   // entered the batch: running, without a slot
  std::vector<Sequence*> preempted;  // left it: waiting, pages given back
  void clear();
};

class Scheduler {
 public:
  static constexpr uint32_t kMaxOvertakes = 64;

  Scheduler(const SchedulerLimits& limits, BlockManager& blocks);

  // A leader brings its followers.
  void add(Sequence& sequence);
  // Gives its pages back, whatever its state, and makes it kEnded.
  void remove(Sequence& sequence);

  // The next step; no rows when nothing can run. Advances num_computed and num_pending of the sequences in it.
  void schedule(Schedule& schedule);

  [[nodiscard]] size_t num_running() const { return running_.size(); }
  [[nodiscard]] size_t num_waiting() const { return waiting_.size(); }
  [[nodiscard]] std::span<Sequence* const> running() const { return running_; }

 private:
  void plan(Sequence& sequence, uint32_t count, Schedule& schedule);
  // Pages for one more row of a running sequence; preempts others behind it in order of service.
  bool make_room(Sequence& sequence, Schedule& schedule);
  void preempt(Sequence& sequence, Schedule& schedule);
  // It waits again and will be computed anew.
  void send_back(Sequence& sequence, Schedule& schedule);
  void send_back_outgrown(Schedule& schedule);
  void release_before_window(Sequence& sequence);
  // The table for the variant that the known tokens need.
  void choose_variant(Sequence& sequence);
  void fork_followers(uint32_t row, Schedule& schedule);
  bool fork(Sequence& leader, Sequence& follower);
  void admit_waiting(Schedule& schedule);
  // The oldest that waits is raised above all priorities when too many later ones went before it.
  void count_overtake(const Sequence& admitted);
  bool admit(Sequence& sequence);
  [[nodiscard]] uint64_t promised_pages() const;

  const SchedulerLimits limits_;
  BlockManager& blocks_;
  std::vector<Sequence*> running_;  // in order of service
  std::vector<Sequence*> waiting_;  // in order of service
  uint32_t budget_ = 0;             // tokens left in the schedule being made
};

}  // namespace dyn::native

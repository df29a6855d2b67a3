// KvEventLog: the KV events of one engine as routers see them: numbered without gaps, and kept so that a router that
// missed some, or came late, can be told the present state.
//
//   KvEventLog log({.worker_id = id, .dp_rank = 0});
//   log.apply(event, out);          // engine event -> router events, ids assigned
//   publish(out);
//   KvQueryAnswer answer = log.answer(start, end);
//
// It holds the blocks that routers know of (a forest by block hash) and the last kMaxRecentEvents events. What would
// confuse a router is left out: a block whose parent it does not know, one it knows already, the removal of one it does
// not know. lose() is for events that never got here: routers forget everything and learn anew. Facts: Dynamo 0.9 ...
// 1.6, lib/kv-router (local indexer) and lib/llm/src/kv_router/publisher. Pure: no I/O, no clock. Thread rules: one
// thread at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "llm/router_event.h"

namespace dyn::worker {

// A block that a router knows, with the parent that makes it what it is.
struct KnownBlock {
  std::optional<llm::BlockHash> parent;
  uint64_t tokens_hash = 0;
};

// What a recovery query is answered with.
struct KvEventRange {
  std::vector<llm::RouterEvent> events;
};
struct KvTreeDump {
  std::vector<llm::RouterEvent> events;  // stored, parents before children, ids 0, 1, 2, ...
};
struct KvTooNew {
  std::optional<uint64_t> requested_start;
  std::optional<uint64_t> requested_end;
};
struct KvInvalidRange {
  uint64_t start = 0;
  uint64_t end = 0;
};
struct KvQueryAnswer {
  std::variant<KvEventRange, KvTreeDump, KvTooNew, KvInvalidRange> value;
  uint64_t last_event_id = 0;  // the answer holds everything up to this one
};

class KvEventLog {
 public:
  static constexpr size_t kMaxRecentEvents = 1024;
  static constexpr size_t kMaxBlocksPerEvent = 128;  // of one stored event: the official publisher's limit

  struct Options {
    uint64_t worker_id = 0;
    uint32_t dp_rank = 0;
  };
  explicit KvEventLog(const Options& options) : options_(options) {}

  // Appends to `out` what is to be published.
  void apply(const llm::KvEvent& event, std::vector<llm::RouterEvent>& out);
  // Events were lost on their way here: routers forget everything.
  void lose(std::vector<llm::RouterEvent>& out);

  // Events `start` to `end`, or the whole state when they are no longer here or `start` is not given.
  [[nodiscard]] KvQueryAnswer answer(std::optional<uint64_t> start, std::optional<uint64_t> end) const;

  [[nodiscard]] uint64_t last_event_id() const { return last_event_id_; }
  [[nodiscard]] size_t num_blocks() const { return blocks_.size(); }
  // Blocks that were left out because their parent is unknown; not 0 only after lose().
  [[nodiscard]] uint64_t orphans() const { return orphans_; }

 private:
  void apply_stored(const llm::KvBlocksStored& stored, std::vector<llm::RouterEvent>& out);
  void apply_removed(const llm::KvBlocksRemoved& removed, std::vector<llm::RouterEvent>& out);
  template <class Data>
  void emit(Data data, std::vector<llm::RouterEvent>& out);
  [[nodiscard]] KvTreeDump dump() const;

  const Options options_;
  std::unordered_map<llm::BlockHash, KnownBlock> blocks_;
  std::deque<llm::RouterEvent> recent_;
  uint64_t last_event_id_ = 0;
  uint64_t orphans_ = 0;
};

}  // namespace dyn::worker

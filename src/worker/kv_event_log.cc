#include "worker/kv_event_log.h"

#include <span>
#include <utility>

#include "llm/block_hash.h"

namespace dyn::worker {

using llm::BlockHash;
using llm::RouterEvent;
using llm::RouterStored;

template <class Data>
void KvEventLog::emit(Data data, std::vector<RouterEvent>& out) {
  RouterEvent event{.worker_id = options_.worker_id,
                    .dp_rank = options_.dp_rank,
                    .event_id = ++last_event_id_,
                    .data = std::move(data)};
  if (recent_.size() == kMaxRecentEvents) recent_.pop_front();
  recent_.push_back(event);
  out.push_back(std::move(event));
}

void KvEventLog::apply(const llm::KvEvent& event, std::vector<RouterEvent>& out) {
  if (const auto* stored = std::get_if<llm::KvBlocksStored>(&event)) {
    apply_stored(*stored, out);
  } else if (const auto* removed = std::get_if<llm::KvBlocksRemoved>(&event)) {
    apply_removed(*removed, out);
  } else {
    lose(out);
  }
}

void KvEventLog::apply_stored(const llm::KvBlocksStored& stored, std::vector<RouterEvent>& out) {
  // Whole blocks only, whatever the engine hands over.
  if (stored.block_size == 0 || stored.tokens.size() != stored.blocks.size() * stored.block_size) return;
  const uint64_t seed = llm::block_hash_seed(stored.cache_salt);
  const std::span<const llm::TokenId> tokens(stored.tokens);
  RouterStored pending;
  const auto flush = [&] {
    if (!pending.blocks.empty()) emit(std::exchange(pending, {}), out);
  };
  std::optional<BlockHash> parent = stored.parent;
  for (size_t i = 0; i < stored.blocks.size(); ++i) {
    const BlockHash hash = stored.blocks[i];
    if (parent && !blocks_.contains(*parent)) {
      // All that follow descend from it.
      orphans_ += stored.blocks.size() - i;
      break;
    }
    const uint64_t tokens_hash = llm::hash_block_tokens(tokens.subspan(i * stored.block_size, stored.block_size), seed);
    if (blocks_.emplace(hash, KnownBlock{parent, tokens_hash}).second) {
      if (pending.blocks.empty()) pending.parent = parent;
      pending.blocks.push_back({hash, tokens_hash});
      if (pending.blocks.size() == kMaxBlocksPerEvent) flush();
    } else {
      flush();
    }
    parent = hash;
  }
  flush();
}

void KvEventLog::apply_removed(const llm::KvBlocksRemoved& removed, std::vector<RouterEvent>& out) {
  llm::KvBlocksRemoved known;
  for (const BlockHash hash : removed.blocks) {
    if (blocks_.erase(hash) > 0) known.blocks.push_back(hash);
  }
  if (!known.blocks.empty()) emit(std::move(known), out);
}

void KvEventLog::lose(std::vector<RouterEvent>& out) {
  blocks_.clear();
  emit(llm::KvCleared{}, out);
}

KvTreeDump KvEventLog::dump() const {
  std::unordered_map<BlockHash, std::vector<BlockHash>> children;
  struct Start {
    std::optional<BlockHash> parent;
    BlockHash hash;
  };
  std::vector<Start> starts;  // of chains; the parent of each is in an event already
  for (const auto& [hash, block] : blocks_) {
    if (block.parent) {
      children[*block.parent].push_back(hash);
    } else {
      starts.push_back({{}, hash});
    }
  }
  KvTreeDump dump;
  while (!starts.empty()) {
    const Start start = starts.back();
    starts.pop_back();
    RouterStored chain{.parent = start.parent, .blocks = {}};
    for (BlockHash hash = start.hash;;) {
      chain.blocks.push_back({hash, blocks_.at(hash).tokens_hash});
      const auto found = children.find(hash);
      if (found == children.end()) break;
      const auto& below = found->second;
      const bool full = chain.blocks.size() == kMaxBlocksPerEvent;
      for (size_t i = full ? 0 : 1; i < below.size(); ++i) starts.push_back({hash, below[i]});
      if (full) break;
      hash = below.front();
    }
    dump.events.push_back({.worker_id = options_.worker_id,
                           .dp_rank = options_.dp_rank,
                           .event_id = dump.events.size(),
                           .data = std::move(chain)});
  }
  return dump;
}

KvQueryAnswer KvEventLog::answer(std::optional<uint64_t> start, std::optional<uint64_t> end) const {
  KvQueryAnswer answer{.value = {}, .last_event_id = last_event_id_};
  if (start && end && *end < *start) {
    answer.value = KvInvalidRange{*start, *end};
  } else if (!start || recent_.empty() || *start < recent_.front().event_id) {
    answer.value = dump();
  } else if (*start > last_event_id_) {
    answer.value = KvTooNew{start, end};
  } else {
    // Up to the newest, whatever `end` says: more than was asked for repairs more than was asked for.
    const auto first = recent_.begin() + static_cast<std::ptrdiff_t>(*start - recent_.front().event_id);
    answer.value = KvEventRange{{first, recent_.end()}};
  }
  return answer;
}

}  // namespace dyn::worker

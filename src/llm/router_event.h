// RouterEvent: a KV event in the form that Dynamo's KV routers read, with the numbers that let them notice a loss.
//
//   RouterEvent event{.worker_id = id, .event_id = 1, .data = KvBlocksStoredHashes{.blocks = {{hash, tokens_hash}}}};
//   encode_router_event(out, event, RouterEventForm::kEndpoint);
//
// Routers compute `tokens_hash` themselves from a request's tokens; `block_hash` is the worker's own name of a block in
// its place. Only whole blocks are named. Two forms: kComponent for routers of 0.9 ... 1.3, kEndpoint for 1.4 and
// later, with the storage tier and the residency domain. Facts: lib/kv-router/src/protocols.rs. Thread rules: plain
// values and functions.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "base/buffer.h"
#include "llm/kv_event.h"

namespace dyn::llm {

struct RouterBlock {
  BlockHash block_hash = 0;
  uint64_t tokens_hash = 0;
};

struct RouterStored {
  std::optional<BlockHash> parent;
  std::vector<RouterBlock> blocks;  // each the child of the one before
};

struct RouterEvent {
  uint64_t worker_id = 0;
  uint32_t dp_rank = 0;
  uint64_t event_id = 0;
  std::variant<RouterStored, KvBlocksRemoved, KvCleared> data;
};

enum class RouterEventForm : uint8_t { kComponent, kEndpoint };

// Msgpack, one map.
void encode_router_event(Buffer& out, const RouterEvent& event, RouterEventForm form);

}  // namespace dyn::llm

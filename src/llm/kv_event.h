// KV cache events: what a KV router needs to know about the blocks a worker holds. Plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "llm/tokens.h"

namespace dyn::llm {

// Hash of a block chained with all blocks before it: identifies a prefix, not only its last block.
using BlockHash = uint64_t;

struct KvBlocksStored {
  std::optional<BlockHash> parent;  // nothing: the first block of a sequence
  std::vector<BlockHash> blocks;    // consecutive
  std::vector<TokenId> tokens;      // blocks.size() * block_size
  uint32_t block_size = 0;
  std::string cache_salt;  // of the request that computed them; routers mix it into their hashes
};

struct KvBlocksRemoved {
  std::vector<BlockHash> blocks;
};

struct KvCleared {};

using KvEvent = std::variant<KvBlocksStored, KvBlocksRemoved, KvCleared>;

}  // namespace dyn::llm

// Hashes that identify KV blocks: of a block's tokens, and of a block together with everything before it.
//
//   uint64_t seed = block_hash_seed(cache_salt);
//   BlockHash hash = chain_block_hash(parent, hash_block_tokens(tokens, seed));
//
// These are the values that Dynamo's KV routers compute themselves from a request's tokens, so that all workers give
// one prefix one name: XXH3 with 64 bits over little-endian token ids, seed 1337; a cache salt moves the seed
// (Dynamo 1.5, lib/kv-hashing/src/salt.rs; lib/kv-router/src/protocols.rs). They are not collision resistant: whoever
// uses them to find KV data must compare the tokens too. Plain functions; no thread rules.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "llm/kv_event.h"

namespace dyn::llm {

// Seed of the token hashes of all blocks under this salt; empty: no salt.
uint64_t block_hash_seed(std::string_view cache_salt);

// Of the content of one whole block.
uint64_t hash_block_tokens(std::span<const TokenId> tokens, uint64_t seed);

// Of a block in its place; `parent` is nothing for the first block of a sequence.
BlockHash chain_block_hash(std::optional<BlockHash> parent, uint64_t tokens_hash);

}  // namespace dyn::llm

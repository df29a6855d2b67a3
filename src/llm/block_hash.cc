#include "llm/block_hash.h"

#include <bit>

// Everything inlined here: no library to link, and no symbols to share with others that carry their own xxHash.
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace dyn::llm {
namespace {

constexpr uint64_t kSeed = 1337;
constexpr uint64_t kSaltSeed = 1;

static_assert(std::endian::native == std::endian::little, "token ids are hashed as little-endian bytes");

}  // namespace

uint64_t block_hash_seed(std::string_view cache_salt) {
  if (cache_salt.empty()) return kSeed;
  return kSeed + XXH3_64bits_withSeed(cache_salt.data(), cache_salt.size(), kSaltSeed);
}

uint64_t hash_block_tokens(std::span<const TokenId> tokens, uint64_t seed) {
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), seed);
}

BlockHash chain_block_hash(std::optional<BlockHash> parent, uint64_t tokens_hash) {
  if (!parent) return tokens_hash;
  const uint64_t pair[2] = {*parent, tokens_hash};
  return XXH3_64bits_withSeed(pair, sizeof(pair), kSeed);
}

}  // namespace dyn::llm

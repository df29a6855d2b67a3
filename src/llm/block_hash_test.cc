#include "llm/block_hash.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace dyn::llm {
namespace {

std::vector<BlockHash> chain(const std::vector<TokenId>& tokens, size_t block_size, std::string_view salt = {}) {
  std::vector<BlockHash> hashes;
  std::optional<BlockHash> parent;
  for (size_t begin = 0; begin + block_size <= tokens.size(); begin += block_size) {
    const auto block = std::span(tokens).subspan(begin, block_size);
    parent = chain_block_hash(parent, hash_block_tokens(block, block_hash_seed(salt)));
    hashes.push_back(*parent);
  }
  return hashes;
}

std::vector<TokenId> iota(size_t count, TokenId first) {
  std::vector<TokenId> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Outputs of the bindings of Dynamo 0.8.1 to 1.6.1 (compute_block_hash_for_seq) and of the routers' chain.
TEST(BlockHash, EqualsThatOfTheRouters) {
  EXPECT_EQ(chain(iota(12, 1), 4),
            (std::vector<BlockHash>{14643705804678351452U, 4945711292740353085U, 12583592247330656132U}));
  EXPECT_EQ(chain(iota(6, 1), 4), (std::vector<BlockHash>{14643705804678351452U}));
  EXPECT_EQ(chain(iota(64, 1000), 32), (std::vector<BlockHash>{9188553531300959059U, 14908719570377643093U}));
  EXPECT_EQ(chain({0, 1, 2147483648U, 4294967295U}, 4), (std::vector<BlockHash>{14041912092348625058U}));
}

TEST(BlockHash, SaltMovesTheSeed) {
  EXPECT_EQ(chain(iota(8, 1), 4, "tenant-a"), (std::vector<BlockHash>{5738685477468498325U, 1076233986426276607U}));
}

}  // namespace
}  // namespace dyn::llm

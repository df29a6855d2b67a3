#include "native/kv/block_manager.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <unordered_set>

namespace dyn::native {
namespace {

using Tokens = std::vector<TokenId>;

Tokens iota(size_t count, TokenId first = 1) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Runs a sequence through: prefix, pages, computed, committed.
BlockTable computed(BlockManager& blocks, const Tokens& tokens, std::string_view salt = {}) {
  BlockTable table = blocks.make_table(salt);
  blocks.acquire_prefix(table, tokens);
  EXPECT_TRUE(blocks.grow(table, tokens.size()));
  blocks.commit(table, tokens);
  return table;
}

TEST(BlockManager, ReusesWholeBlocksAndLeavesTheLastToken) {
  BlockManager blocks({.num_pages = 16, .tokens_per_block = 4});
  BlockTable first = computed(blocks, iota(12));
  for (const auto& [length, expected] :
       std::map<size_t, uint32_t>{{3, 0}, {4, 0}, {5, 4}, {8, 4}, {9, 8}, {12, 8}, {13, 12}, {20, 12}}) {
    BlockTable table = blocks.make_table({});
    EXPECT_EQ(blocks.match_prefix(table, iota(length)).blocks * 4, expected);
    EXPECT_EQ(blocks.acquire_prefix(table, iota(length)), expected) << length;
    EXPECT_TRUE(std::ranges::equal(table.pages(), first.pages().first(expected / 4)));
    blocks.release(table);
  }
  blocks.release(first);
  EXPECT_EQ(blocks.stats().pages_referenced, 0U);
  EXPECT_EQ(blocks.stats().pages_cached, 3U);
  EXPECT_EQ(blocks.audit(), "");
}

TEST(BlockManager, PartialBlocksAreNotShared) {
  BlockManager blocks({.num_pages = 16, .tokens_per_block = 4});
  BlockTable first = computed(blocks, iota(7));
  BlockTable second = blocks.make_table({});
  EXPECT_EQ(blocks.acquire_prefix(second, iota(8)), 4U);
  EXPECT_FALSE(blocks.is_writable(first.pages()[0]));
  EXPECT_TRUE(blocks.is_writable(first.pages()[1]));
  blocks.release(second);
  blocks.release(first);
}

TEST(BlockManager, SaltsDoNotShare) {
  BlockManager blocks({.num_pages = 16, .tokens_per_block = 4});
  BlockTable first = computed(blocks, iota(8), "a");
  BlockTable other = blocks.make_table("b");
  EXPECT_EQ(blocks.acquire_prefix(other, iota(9)), 0U);
  BlockTable none = blocks.make_table({});
  EXPECT_EQ(blocks.acquire_prefix(none, iota(9)), 0U);
  BlockTable same = blocks.make_table("a");
  EXPECT_EQ(blocks.acquire_prefix(same, iota(9)), 8U);
  for (BlockTable* table : {&first, &other, &none, &same}) blocks.release(*table);
}

TEST(BlockManager, EvictsTheLeastRecentlyUsedChildrenFirst) {
  BlockManager blocks({.num_pages = 4, .tokens_per_block = 4});
  BlockTable old = computed(blocks, iota(8, 1));
  blocks.release(old);
  BlockTable recent = computed(blocks, iota(8, 100));
  blocks.release(recent);
  std::vector<llm::KvEvent> events;
  blocks.take_events(events);
  const auto stored = std::get<llm::KvBlocksStored>(events.at(0));

  BlockTable table = blocks.make_table({});
  EXPECT_TRUE(blocks.grow(table, 4));
  BlockTable probe = blocks.make_table({});
  EXPECT_EQ(blocks.match_prefix(probe, iota(9, 1)).blocks, 1U);  // the child went first
  EXPECT_EQ(blocks.match_prefix(probe, iota(9, 100)).blocks, 2U);
  EXPECT_TRUE(blocks.grow(table, 8));
  EXPECT_EQ(blocks.match_prefix(probe, iota(9, 1)).blocks, 0U);
  EXPECT_EQ(blocks.match_prefix(probe, iota(9, 100)).blocks, 2U);
  events.clear();
  blocks.take_events(events);
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(std::get<llm::KvBlocksRemoved>(events[0]).blocks,
            (std::vector<BlockHash>{stored.blocks[1], stored.blocks[0]}));
  EXPECT_EQ(blocks.stats().evictions, 2U);
  blocks.release(table);
}

TEST(BlockManager, GrowTakesAllOrNothing) {
  BlockManager blocks({.num_pages = 4, .tokens_per_block = 4});
  BlockTable table = blocks.make_table({});
  EXPECT_FALSE(blocks.grow(table, 17));
  EXPECT_TRUE(table.pages().empty());
  EXPECT_TRUE(blocks.grow(table, 16));
  EXPECT_EQ(blocks.available_pages(), 0U);
  blocks.release(table);
  EXPECT_EQ(blocks.available_pages(), 4U);
}

TEST(BlockManager, TheSameBlockComputedTwiceIsKeptOnce) {
  BlockManager blocks({.num_pages = 8, .tokens_per_block = 4});
  BlockTable first = blocks.make_table({});
  BlockTable second = blocks.make_table({});
  ASSERT_TRUE(blocks.grow(first, 8));
  ASSERT_TRUE(blocks.grow(second, 8));
  blocks.commit(first, iota(8));
  EXPECT_EQ(blocks.stats().pages_referenced, 4U);
  blocks.commit(second, iota(8));
  EXPECT_TRUE(std::ranges::equal(first.pages(), second.pages()));
  EXPECT_EQ(blocks.stats().pages_referenced, 2U);
  std::vector<llm::KvEvent> events;
  blocks.take_events(events);
  EXPECT_EQ(events.size(), 1U);  // stored once
  blocks.release(first);
  blocks.release(second);
  EXPECT_EQ(blocks.audit(), "");
}

TEST(BlockManager, StoredEventsChain) {
  BlockManager blocks({.num_pages = 8, .tokens_per_block = 4});
  BlockTable table = blocks.make_table("tenant-a");
  ASSERT_TRUE(blocks.grow(table, 12));
  blocks.commit(table, iota(8));
  blocks.commit(table, iota(11));
  blocks.commit(table, iota(12));
  std::vector<llm::KvEvent> events;
  blocks.take_events(events);
  ASSERT_EQ(events.size(), 2U);
  const auto& head = std::get<llm::KvBlocksStored>(events[0]);
  EXPECT_FALSE(head.parent.has_value());
  EXPECT_EQ(head.blocks, (std::vector<BlockHash>{5738685477468498325U, 1076233986426276607U}));
  EXPECT_EQ(head.tokens, iota(8));
  EXPECT_EQ(head.block_size, 4U);
  EXPECT_EQ(head.cache_salt, "tenant-a");
  const auto& tail = std::get<llm::KvBlocksStored>(events[1]);
  EXPECT_EQ(tail.parent, head.blocks[1]);
  EXPECT_EQ(tail.tokens, iota(4, 9));
  blocks.release(table);
}

TEST(BlockManager, ForgetTakesAllContinuations) {
  BlockManager blocks({.num_pages = 16, .tokens_per_block = 4});
  BlockTable trunk = computed(blocks, iota(8));
  Tokens longer = iota(8);
  longer.insert(longer.end(), {50, 51, 52, 53});
  BlockTable branch = computed(blocks, longer);
  BlockTable other = computed(blocks, iota(8, 100));
  blocks.forget(trunk);
  BlockTable probe = blocks.make_table({});
  longer.push_back(54);
  EXPECT_EQ(blocks.match_prefix(probe, longer).blocks, 0U);
  EXPECT_EQ(blocks.match_prefix(probe, iota(9, 100)).blocks, 2U);
  EXPECT_EQ(blocks.audit(), "");
  // The one that still runs goes on, but enters nothing more into the cache.
  longer.insert(longer.end(), {55, 56, 57});
  ASSERT_TRUE(blocks.grow(branch, 16));
  blocks.commit(branch, longer);
  EXPECT_EQ(blocks.match_prefix(probe, longer).blocks, 0U);
  blocks.release(branch);
  blocks.release(other);
  EXPECT_EQ(blocks.stats().pages_free, 14U);
  EXPECT_EQ(blocks.audit(), "");
}

TEST(BlockManager, WithoutReuseNothingIsKept) {
  BlockManager blocks({.num_pages = 8, .tokens_per_block = 4, .enable_reuse = false});
  BlockTable table = computed(blocks, iota(8));
  blocks.release(table);
  EXPECT_EQ(blocks.stats().pages_free, 8U);
  EXPECT_EQ(blocks.acquire_prefix(table, iota(9)), 0U);
  std::vector<llm::KvEvent> events;
  blocks.take_events(events);
  EXPECT_TRUE(events.empty());
}

// What a KV router believes: applies events as strictly as one.
class RouterIndex {
 public:
  void apply(const llm::KvEvent& event, uint32_t block_size) {
    if (const auto* stored = std::get_if<llm::KvBlocksStored>(&event)) {
      ASSERT_FALSE(stored->blocks.empty());
      ASSERT_EQ(stored->tokens.size(), stored->blocks.size() * block_size);
      if (stored->parent) ASSERT_TRUE(parent_of_.contains(*stored->parent)) << "parent is not known";
      std::optional<BlockHash> parent = stored->parent;
      for (const BlockHash block : stored->blocks) {
        ASSERT_TRUE(parent_of_.emplace(block, parent).second) << "stored twice";
        if (parent) ++children_[*parent];
        parent = block;
      }
    } else if (const auto* removed = std::get_if<llm::KvBlocksRemoved>(&event)) {
      for (const BlockHash block : removed->blocks) {
        const auto known = parent_of_.find(block);
        ASSERT_TRUE(known != parent_of_.end()) << "removed, but not known";
        ASSERT_EQ(children_[block], 0) << "removed before its children";
        if (known->second) --children_[*known->second];
        parent_of_.erase(known);
      }
    } else {
      parent_of_.clear();
      children_.clear();
    }
  }
  [[nodiscard]] size_t size() const { return parent_of_.size(); }

 private:
  std::map<BlockHash, std::optional<BlockHash>> parent_of_;
  std::map<BlockHash, int> children_;
};

// 10^5 random operations against a model that knows what is in every page.
struct PoolCase {
  uint32_t num_pages;
  uint32_t hash_bits;
};

class BlockManagerProperty : public ::testing::TestWithParam<PoolCase> {};

struct Live {
  BlockTable table;
  std::string salt;
  Tokens tokens;
  size_t num_computed = 0;
};

// Names a prefix; independent of the manager's own hashes.
uint64_t prefix_name(const Live& live, size_t position) {
  uint64_t name = std::hash<std::string>{}(live.salt);
  for (size_t i = 0; i <= position; ++i) name = (name ^ live.tokens[i]) * 0x9E37'79B9'7F4A'7C15 + 12345;
  return name;
}

TEST_P(BlockManagerProperty, NoLeakNoDoubleUseNoStaleDataNoWriteToASharedPage) {
  const uint32_t num_pages = GetParam().num_pages;
  constexpr uint32_t kBlock = 4;
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };

  BlockManager blocks({.num_pages = num_pages, .tokens_per_block = kBlock, .hash_bits = GetParam().hash_bits});
  std::vector<std::vector<uint64_t>> contents(num_pages, std::vector<uint64_t>(kBlock, 0));
  std::vector<Live> live;
  RouterIndex router;
  std::vector<llm::KvEvent> events;
  uint64_t found = 0;

  for (int operation = 0; operation < 100'000; ++operation) {
    const uint32_t dice = below(1000);
    if (dice < 250 || live.empty()) {
      // Few tokens and many repetitions: prefixes coincide often.
      Live sequence;
      sequence.salt = below(4) == 0 ? "salt" : "";
      if (!live.empty() && below(2) == 0) {
        const Live& model = live[below(static_cast<uint32_t>(live.size()))];
        sequence.tokens.assign(model.tokens.begin(),
                               model.tokens.begin() + 1 + below(static_cast<uint32_t>(model.tokens.size())));
      }
      for (uint32_t i = 1 + below(12); i > 0; --i) sequence.tokens.push_back(below(2));
      sequence.table = blocks.make_table(sequence.salt);
      const auto match = blocks.match_prefix(sequence.table, sequence.tokens);
      const uint64_t available = blocks.available_pages();
      sequence.num_computed = blocks.acquire_prefix(sequence.table, sequence.tokens);
      ASSERT_EQ(match.blocks * kBlock, sequence.num_computed);
      ASSERT_EQ(available - match.unreferenced, blocks.available_pages());
      ASSERT_LT(sequence.num_computed, sequence.tokens.size());
      found += sequence.num_computed;
      for (size_t i = 0; i < sequence.num_computed; ++i) {
        const auto page = static_cast<size_t>(sequence.table.pages()[i / kBlock]);
        ASSERT_EQ(contents[page][i % kBlock], prefix_name(sequence, i)) << "stale data";
      }
      live.push_back(std::move(sequence));
    } else if (dice < 750) {
      // A step: some tokens are computed, perhaps one is generated.
      Live& sequence = live[below(static_cast<uint32_t>(live.size()))];
      if (sequence.num_computed == sequence.tokens.size()) sequence.tokens.push_back(below(2));
      const size_t end =
          sequence.num_computed + 1 + below(static_cast<uint32_t>(sequence.tokens.size() - sequence.num_computed));
      const uint64_t available = blocks.available_pages();
      const uint64_t held = sequence.table.pages().size();
      const uint64_t wanted = blocks.pages_for(end);
      const bool fits = wanted <= held || wanted - held <= available;
      ASSERT_EQ(blocks.grow(sequence.table, end), fits);
      if (!fits) continue;
      for (size_t i = sequence.num_computed; i < end; ++i) {
        const PageId page = sequence.table.pages()[i / kBlock];
        ASSERT_TRUE(blocks.is_writable(page)) << "write to a shared page";
        contents[static_cast<size_t>(page)][i % kBlock] = prefix_name(sequence, i);
      }
      sequence.num_computed = end;
      blocks.commit(sequence.table, std::span(sequence.tokens).first(end));
      for (size_t i = 0; i < end; ++i) {
        const auto page = static_cast<size_t>(sequence.table.pages()[i / kBlock]);
        ASSERT_EQ(contents[page][i % kBlock], prefix_name(sequence, i)) << "a page was exchanged for another block";
      }
    } else if (dice < 997) {
      const uint32_t victim = below(static_cast<uint32_t>(live.size()));
      blocks.release(live[victim].table);
      std::swap(live[victim], live.back());
      live.pop_back();
    } else if (dice < 999) {
      const uint32_t victim = below(static_cast<uint32_t>(live.size()));
      blocks.forget(live[victim].table);
      std::swap(live[victim], live.back());
      live.pop_back();
    } else {
      blocks.clear_cache();
    }

    if (operation % 16 != 0) continue;
    ASSERT_EQ(blocks.audit(), "");
    std::unordered_set<PageId> referenced;
    for (const Live& sequence : live) {
      referenced.insert(sequence.table.pages().begin(), sequence.table.pages().end());
      ASSERT_GE(sequence.table.pages().size() * kBlock, sequence.num_computed);
    }
    const BlockStats stats = blocks.stats();
    ASSERT_EQ(stats.pages_referenced, referenced.size());
    ASSERT_EQ(stats.pages_free + stats.pages_cached + stats.pages_referenced, stats.pages_total);
    events.clear();
    blocks.take_events(events);
    for (const auto& event : events) ASSERT_NO_FATAL_FAILURE(router.apply(event, kBlock));
  }
  EXPECT_GT(found, 0U);
  if (num_pages < 100) EXPECT_GT(blocks.stats().evictions, 0U);
  for (Live& sequence : live) blocks.release(sequence.table);
  EXPECT_EQ(blocks.stats().pages_referenced, 0U);
  EXPECT_EQ(blocks.stats().pages_free + blocks.stats().pages_cached, num_pages);
  events.clear();
  blocks.take_events(events);
  for (const auto& event : events) ASSERT_NO_FATAL_FAILURE(router.apply(event, kBlock));
  EXPECT_EQ(router.size(), blocks.stats().pages_cached);
  EXPECT_EQ(blocks.audit(), "");
}

INSTANTIATE_TEST_SUITE_P(Sizes, BlockManagerProperty,
                         ::testing::Values(PoolCase{8, 64}, PoolCase{40, 64}, PoolCase{2000, 64},
                                           // Most hashes collide: tokens, parent and salt decide.
                                           PoolCase{40, 3}, PoolCase{2000, 8}));

}  // namespace
}  // namespace dyn::native

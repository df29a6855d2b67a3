#include "native/kv/block_manager.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

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

TEST(BlockManager, TheHeadOfABlockIsCopied) {
  BlockManager blocks({.num_pages = 8, .tokens_per_block = 8});
  BlockTable first = computed(blocks, iota(24));
  Tokens text = iota(21);
  text.insert(text.end(), {77, 78, 79});
  BlockTable second = blocks.make_table({});
  const auto match = blocks.match_prefix(second, text, BlockManager::Tail::kCopy);
  EXPECT_EQ(match.blocks, 2U);
  EXPECT_EQ(match.tail_tokens, 5U);
  EXPECT_EQ(match.tail_page, first.pages()[2]);
  EXPECT_EQ(match.unreferenced, 0U);
  EXPECT_EQ(blocks.acquire_prefix(second, text, BlockManager::Tail::kCopy), 21U);
  ASSERT_EQ(second.pages().size(), 3U);
  EXPECT_TRUE(blocks.is_writable(second.pages()[2]));
  EXPECT_FALSE(blocks.is_writable(first.pages()[2]));
  blocks.release(first);
  EXPECT_EQ(blocks.stats().pages_referenced, 4U) << "the source is held until it is copied";
  std::vector<PageCopy> copies;
  blocks.take_copies(copies);
  ASSERT_EQ(copies.size(), 1U);
  EXPECT_EQ(copies[0].from, match.tail_page);
  EXPECT_EQ(copies[0].to, second.pages()[2]);
  EXPECT_EQ(blocks.stats().pages_referenced, 3U);
  EXPECT_EQ(blocks.stats().tail_hits, 1U);
  blocks.take_copies(copies);
  EXPECT_EQ(copies.size(), 1U) << "each copy once";

  // The partial block itself is no event and cannot be found; when it is full it is a block of its own.
  std::vector<llm::KvEvent> events;
  blocks.take_events(events);
  EXPECT_EQ(events.size(), 1U);
  blocks.commit(second, std::span(text).first(22));
  events.clear();
  blocks.take_events(events);
  EXPECT_TRUE(events.empty());
  blocks.commit(second, text);
  blocks.take_events(events);
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(std::get<llm::KvBlocksStored>(events[0]).tokens, Tokens(text.begin() + 16, text.end()));
  blocks.release(second);
  EXPECT_EQ(blocks.audit(), "");
}

TEST(BlockManager, OfSeveralHeadsTheLongestAndNotATooShortOne) {
  BlockManager blocks({.num_pages = 16, .tokens_per_block = 8});
  for (const Tokens& tail :
       {Tokens{1, 2, 3, 4, 5, 6, 9, 9}, Tokens{1, 2, 3, 9, 9, 9, 9, 9}, Tokens{5, 5, 5, 5, 5, 5, 5, 5}}) {
    for (const char* salt : {"", "salt"}) {
      BlockTable table = computed(blocks, tail, salt);
      blocks.release(table);
    }
  }
  BlockTable probe = blocks.make_table({});
  const auto head = [&](const Tokens& tokens) {
    return blocks.match_prefix(probe, tokens, BlockManager::Tail::kCopy).tail_tokens;
  };
  EXPECT_EQ(head({1, 2, 3, 4, 5, 7, 7, 7, 7}), 5U);
  EXPECT_EQ(head({1, 2, 3, 7}), 3U);
  EXPECT_EQ(head({1, 2, 3}), 2U) << "the last token is computed";
  EXPECT_EQ(head({1, 7, 7, 7}), 0U) << "less than a quarter of a block";
  EXPECT_EQ(head({1}), 0U);
  EXPECT_EQ(head({5, 5, 5, 5, 5, 5, 5, 5}), 7U) << "of a whole block all but the last";
  probe = blocks.make_table("other");
  EXPECT_EQ(head({1, 2, 3, 4, 5, 7, 7, 7, 7}), 0U);
}

TEST(BlockManager, NoCopyWithoutAPageForIt) {
  BlockManager blocks({.num_pages = 3, .tokens_per_block = 4});
  BlockTable first = computed(blocks, iota(8));
  BlockTable other = blocks.make_table({});
  ASSERT_TRUE(blocks.grow(other, 4));
  BlockTable second = blocks.make_table({});
  EXPECT_EQ(blocks.acquire_prefix(second, iota(8), BlockManager::Tail::kCopy), 4U);
  for (BlockTable* table : {&first, &other, &second}) blocks.release(*table);
  EXPECT_EQ(blocks.stats().pages_referenced, 0U);
}

TEST(BlockManager, ForkSharesFullPagesAndCopiesTheLastOneAStepLater) {
  BlockManager blocks({.num_pages = 8, .tokens_per_block = 4});
  BlockTable parent = blocks.make_table({});
  ASSERT_TRUE(blocks.grow(parent, 10));
  BlockTable child = blocks.make_table({});
  ASSERT_EQ(blocks.tail_pages(10), 1U);
  blocks.fork(parent, child, 10);  // before anything is committed: the step that computes it is planned now
  EXPECT_TRUE(std::ranges::equal(child.pages().first(2), parent.pages().first(2)));
  EXPECT_NE(child.pages()[2], parent.pages()[2]);
  EXPECT_FALSE(blocks.is_writable(child.pages()[0]));
  EXPECT_TRUE(blocks.is_writable(child.pages()[2]));
  std::vector<PageCopy> copies;
  blocks.take_copies(copies);
  EXPECT_TRUE(copies.empty());
  blocks.commit(parent, iota(10));
  blocks.commit(child, iota(10));
  blocks.take_copies(copies);
  ASSERT_EQ(copies.size(), 1U);
  EXPECT_EQ(copies[0].from, parent.pages()[2]);
  EXPECT_EQ(copies[0].to, child.pages()[2]);
  EXPECT_EQ(blocks.stats().pages_referenced, 4U);
  std::vector<llm::KvEvent> events;
  blocks.take_events(events);
  EXPECT_EQ(events.size(), 1U) << "stored once";

  // Each goes on alone.
  Tokens other = iota(11);
  other.push_back(99);
  ASSERT_TRUE(blocks.grow(parent, 12) && blocks.grow(child, 12));
  blocks.commit(parent, iota(12));
  blocks.commit(child, other);
  BlockTable probe = blocks.make_table({});
  other.push_back(100);
  EXPECT_EQ(blocks.match_prefix(probe, other).blocks, 3U);
  EXPECT_EQ(blocks.match_prefix(probe, iota(13)).blocks, 3U);
  blocks.release(child);
  blocks.release(parent);
  EXPECT_EQ(blocks.audit(), "");
}

TEST(BlockManager, AReleasedTableIsNotCopiedTo) {
  BlockManager blocks({.num_pages = 8, .tokens_per_block = 4});
  BlockTable parent = blocks.make_table({});
  ASSERT_TRUE(blocks.grow(parent, 6));
  BlockTable child = blocks.make_table({});
  BlockTable sibling = blocks.make_table({});
  blocks.fork(parent, child, 6);
  blocks.fork(parent, sibling, 6);
  blocks.release(child);
  blocks.release(parent);
  std::vector<PageCopy> copies;
  blocks.take_copies(copies);
  blocks.take_copies(copies);
  ASSERT_EQ(copies.size(), 1U);
  EXPECT_EQ(copies[0].to, sibling.pages()[1]);
  EXPECT_EQ(blocks.stats().pages_referenced, 2U);
  blocks.release(sibling);
  EXPECT_EQ(blocks.stats().pages_free, 8U);
  EXPECT_EQ(blocks.audit(), "");
}

TEST(BlockManager, PagesBeforeTheWindowAreGivenBackAndStillFound) {
  BlockManager blocks({.num_pages = 6, .tokens_per_block = 4});
  BlockTable table = blocks.make_table({});
  ASSERT_TRUE(blocks.grow(table, 16));
  blocks.release_before(table, 9);
  EXPECT_EQ(blocks.available_pages(), 2U) << "not before they entered the cache";
  blocks.commit(table, iota(16));
  blocks.release_before(table, 7);
  EXPECT_EQ(table.pages()[0], kNoPage);
  EXPECT_NE(table.pages()[1], kNoPage);
  blocks.release_before(table, 11);
  EXPECT_EQ(table.pages()[1], kNoPage);
  EXPECT_NE(table.pages()[2], kNoPage);
  EXPECT_EQ(blocks.available_pages(), 4U);

  BlockTable probe = blocks.make_table({});
  EXPECT_EQ(blocks.match_prefix(probe, iota(17)).blocks, 4U);
  EXPECT_EQ(blocks.match_prefix(probe, iota(17)).unreferenced, 2U);
  // One of those given back is wanted: what continues it cannot be found without it, and routers are told so.
  std::vector<llm::KvEvent> events;
  blocks.take_events(events);
  const auto stored = std::get<llm::KvBlocksStored>(events.at(0)).blocks;
  events.clear();
  ASSERT_TRUE(blocks.grow(probe, 12));
  EXPECT_EQ(blocks.audit(), "");
  blocks.take_events(events);
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(std::get<llm::KvBlocksRemoved>(events[0]).blocks,
            (std::vector<BlockHash>{stored[3], stored[2], stored[1]}));
  EXPECT_EQ(blocks.stats().evictions, 3U);
  EXPECT_EQ(blocks.match_prefix(blocks.make_table({}), iota(17)).blocks, 1U);
  // The sequence goes on; nothing of it enters the cache any more.
  ASSERT_TRUE(blocks.grow(table, 20));
  blocks.commit(table, iota(20));
  blocks.release_before(table, 17);
  EXPECT_EQ(blocks.stats().pages_referenced, 4U);
  blocks.release(table);
  blocks.release(probe);
  EXPECT_EQ(blocks.stats().pages_free + blocks.stats().pages_cached, 6U);
  EXPECT_EQ(blocks.audit(), "");
}

TEST(BlockManager, ForgetReachesBlocksThatWereGivenBack) {
  BlockManager blocks({.num_pages = 8, .tokens_per_block = 4});
  BlockTable table = computed(blocks, iota(16));
  blocks.release_before(table, 12);
  blocks.forget(table);
  EXPECT_EQ(blocks.stats().pages_free, 8U);
  EXPECT_EQ(blocks.audit(), "");
}

}  // namespace
}  // namespace dyn::native

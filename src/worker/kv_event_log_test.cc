#include "worker/kv_event_log.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "llm/block_hash.h"

namespace dyn::worker {
namespace {

using llm::BlockHash;
using llm::KvBlocksRemoved;
using llm::KvBlocksStored;
using llm::RouterEvent;
using llm::RouterStored;

// A router's index: applies what a router would apply, and fails the test on what it would have to drop.
class Index {
 public:
  void apply(const std::vector<RouterEvent>& events) {
    for (const RouterEvent& event : events) {
      if (const auto* stored = std::get_if<RouterStored>(&event.data)) {
        ASSERT_FALSE(stored->blocks.empty());
        std::optional<BlockHash> parent = stored->parent;
        for (const auto& block : stored->blocks) {
          if (parent) ASSERT_TRUE(parents_.contains(*parent)) << "the parent is not known";
          ASSERT_TRUE(parents_.emplace(block.block_hash, parent).second) << "stored twice";
          parent = block.block_hash;
        }
      } else if (const auto* removed = std::get_if<KvBlocksRemoved>(&event.data)) {
        ASSERT_FALSE(removed->blocks.empty());
        for (const BlockHash hash : removed->blocks) ASSERT_EQ(parents_.erase(hash), 1U) << "removed, but not stored";
      } else {
        parents_.clear();
      }
    }
  }
  [[nodiscard]] const std::map<BlockHash, std::optional<BlockHash>>& blocks() const { return parents_; }

 private:
  std::map<BlockHash, std::optional<BlockHash>> parents_;
};

KvBlocksStored stored(std::optional<BlockHash> parent, std::vector<BlockHash> blocks) {
  KvBlocksStored event{.parent = parent, .blocks = std::move(blocks), .tokens = {}, .block_size = 2, .cache_salt = {}};
  for (const BlockHash hash : event.blocks) event.tokens.insert(event.tokens.end(), {static_cast<uint32_t>(hash), 7});
  return event;
}

class KvEventLogTest : public ::testing::Test {
 protected:
  std::vector<RouterEvent> apply(const llm::KvEvent& event) {
    std::vector<RouterEvent> out;
    log_.apply(event, out);
    return out;
  }

  KvEventLog log_{{.worker_id = 5, .dp_rank = 1}};
};

TEST_F(KvEventLogTest, NumbersFromOneAndHashesTokens) {
  const auto first = apply(stored({}, {10, 11}));
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first[0].event_id, 1U);
  EXPECT_EQ(first[0].worker_id, 5U);
  EXPECT_EQ(first[0].dp_rank, 1U);
  const auto& blocks = std::get<RouterStored>(first[0].data).blocks;
  const uint32_t tokens[] = {11, 7};
  EXPECT_EQ(blocks[1].tokens_hash, llm::hash_block_tokens(tokens, llm::block_hash_seed("")));
  EXPECT_EQ(apply(KvBlocksRemoved{{11}})[0].event_id, 2U);
  EXPECT_EQ(apply(llm::KvCleared{})[0].event_id, 3U);
}

TEST_F(KvEventLogTest, LeavesOutWhatRoutersWouldDrop) {
  EXPECT_TRUE(apply(KvBlocksRemoved{{1}}).empty());
  EXPECT_TRUE(apply(stored(99, {1, 2})).empty());
  EXPECT_EQ(log_.orphans(), 2U);
  EXPECT_EQ(apply(stored({}, {1, 2})).size(), 1U);
  EXPECT_TRUE(apply(stored({}, {1, 2})).empty());
  EXPECT_EQ(log_.last_event_id(), 1U);
}

TEST_F(KvEventLogTest, AKnownBlockInTheMiddleSplitsTheEvent) {
  apply(stored({}, {1}));
  apply(stored(1, {2}));
  apply(KvBlocksRemoved{{2}});
  const auto events = apply(stored({}, {1, 2, 3}));
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(std::get<RouterStored>(events[0].data).parent, 1U);
  EXPECT_EQ(std::get<RouterStored>(events[0].data).blocks.size(), 2U);
}

TEST_F(KvEventLogTest, ALongChainBecomesSeveralEvents) {
  std::vector<BlockHash> chain;
  for (BlockHash hash = 1; hash <= 300; ++hash) chain.push_back(hash);
  const auto events = apply(stored({}, chain));
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(std::get<RouterStored>(events[1].data).parent, 128U);
  Index index;
  index.apply(events);
  EXPECT_EQ(index.blocks().size(), 300U);
}

TEST_F(KvEventLogTest, AfterALossRoutersForgetAndLearnAnew) {
  apply(stored({}, {1, 2}));
  std::vector<RouterEvent> out;
  log_.lose(out);
  ASSERT_EQ(out.size(), 1U);
  EXPECT_TRUE(std::holds_alternative<llm::KvCleared>(out[0].data));
  EXPECT_TRUE(apply(stored(2, {3})).empty());
  EXPECT_TRUE(apply(KvBlocksRemoved{{2, 1}}).empty());
  EXPECT_EQ(apply(stored({}, {1}))[0].event_id, 3U);
}

TEST_F(KvEventLogTest, AnswersQueries) {
  EXPECT_TRUE(std::get<KvTreeDump>(log_.answer({}, {}).value).events.empty());
  for (BlockHash hash = 1; hash <= 5; ++hash) apply(stored({}, {hash}));
  Index index;
  index.apply(std::get<KvTreeDump>(log_.answer({}, {}).value).events);
  EXPECT_EQ(index.blocks().size(), 5U);
  const auto range = std::get<KvEventRange>(log_.answer(3, 4).value).events;
  ASSERT_EQ(range.size(), 3U);
  EXPECT_EQ(range.front().event_id, 3U);
  EXPECT_TRUE(std::holds_alternative<KvTooNew>(log_.answer(6, {}).value));
  EXPECT_TRUE(std::holds_alternative<KvInvalidRange>(log_.answer(4, 3).value));
  EXPECT_EQ(log_.answer(6, {}).last_event_id, 5U);
  // Older than what is kept: the state instead.
  for (size_t i = 0; i < KvEventLog::kMaxRecentEvents; ++i) apply(llm::KvCleared{});
  EXPECT_TRUE(std::holds_alternative<KvTreeDump>(log_.answer(5, {}).value));
  EXPECT_TRUE(std::holds_alternative<KvEventRange>(log_.answer(6, {}).value));
}

// Whatever the engine does, losses included: what routers are told is consistent, and a dump rebuilds their state.
TEST_F(KvEventLogTest, RandomTrafficKeepsRoutersConsistent) {
  std::mt19937 random(1);
  std::map<BlockHash, std::optional<BlockHash>> engine;  // what the engine holds
  std::map<BlockHash, int> children;
  Index index;
  uint64_t expected_id = 0;
  BlockHash next = 1;
  for (int round = 0; round < 20'000; ++round) {
    llm::KvEvent event;
    const auto pick = [&] { return std::next(engine.begin(), random() % engine.size())->first; };
    if (engine.empty() || random() % 3 != 0) {
      std::optional<BlockHash> parent;
      if (!engine.empty() && random() % 4 != 0) parent = pick();
      std::vector<BlockHash> chain;
      std::optional<BlockHash> above = parent;
      for (uint32_t i = 0; i < 1 + random() % 4; ++i) {
        chain.push_back(next++);
        engine[chain.back()] = above;
        if (above) ++children[*above];
        above = chain.back();
      }
      event = stored(parent, chain);
    } else {
      const BlockHash leaf = pick();
      if (children[leaf] > 0) continue;
      if (const auto parent = engine[leaf]) --children[*parent];
      engine.erase(leaf);
      event = KvBlocksRemoved{{leaf}};
    }
    std::vector<RouterEvent> out;
    if (random() % 2000 == 0) {
      log_.lose(out);
    } else {
      log_.apply(event, out);
    }
    for (const RouterEvent& published : out) ASSERT_EQ(published.event_id, ++expected_id);
    index.apply(out);
    if (HasFatalFailure()) return;
    for (const auto& [hash, parent] : index.blocks()) {
      if (round % 500 == 0) ASSERT_TRUE(engine.contains(hash) || log_.orphans() > 0);
    }
  }
  Index late;
  late.apply(std::get<KvTreeDump>(log_.answer({}, {}).value).events);
  EXPECT_EQ(late.blocks(), index.blocks());
}

}  // namespace
}  // namespace dyn::worker

// More than 10^6 random operations on block managers of all kinds; see BlockManagerProperty.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <unordered_set>

#include "base/test_sanitized.h"
#include "native/kv/block_manager.h"

namespace dyn::native {
namespace {

using Tokens = std::vector<TokenId>;

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

constexpr int kOperations = kSanitized ? 20'000 : 150'000;

// More than 10^6 random operations, all cases together, against a model that knows what is in every page: of each
// position the name of the text up to it. Copies are made when an executor would make them: those taken at a step
// before anything is written in it.
struct PoolCase {
  uint32_t num_pages;
  uint32_t hash_bits;
  uint32_t window;  // 0: none
};

class BlockManagerProperty : public ::testing::TestWithParam<PoolCase> {
 protected:
  static constexpr uint32_t kBlock = 4;

  struct Live {
    BlockTable table;
    std::string salt;
    Tokens tokens;
    std::vector<uint64_t> names;  // of each prefix; independent of the manager's own hashes
    size_t num_computed = 0;

    void push(TokenId token) {
      const uint64_t before = names.empty() ? std::hash<std::string>{}(salt) : names.back();
      tokens.push_back(token);
      names.push_back((before ^ (token + 1)) * 0x9E37'79B9'7F4A'7C15 + 12345);
    }
  };

  BlockManagerProperty()
      : blocks({.num_pages = GetParam().num_pages, .tokens_per_block = kBlock, .hash_bits = GetParam().hash_bits}),
        contents(GetParam().num_pages, std::vector<uint64_t>(kBlock, 0)) {}

  uint32_t below(uint32_t limit) { return static_cast<uint32_t>(random() % limit); }
  Live& any() { return live[below(static_cast<uint32_t>(live.size()))]; }
  uint64_t& content(PageId page, size_t position) { return contents[static_cast<size_t>(page)][position % kBlock]; }
  [[nodiscard]] size_t first_seen(const Live& sequence) const {
    const size_t window = GetParam().window;
    return window == 0 || sequence.num_computed + 1 < window ? 0 : sequence.num_computed + 1 - window;
  }

  // What the next token looks at is there.
  void check_contents(const Live& sequence, const char* what) {
    for (size_t i = first_seen(sequence); i < sequence.num_computed; ++i) {
      const PageId page = sequence.table.pages()[i / kBlock];
      ASSERT_NE(page, kNoPage) << what;
      if (pending.contains(page)) continue;  // not copied yet
      ASSERT_EQ(content(page, i), sequence.names[i]) << what << ", position " << i << " of " << sequence.num_computed;
    }
  }

  // The copies of a step, then what it computes for one sequence.
  void copy_pages() {
    std::vector<PageCopy> copies;
    blocks.take_copies(copies);
    std::set<PageId> written;
    for (const PageCopy& copy : copies) ASSERT_TRUE(written.insert(copy.to).second) << "written twice";
    for (const PageCopy& copy : copies) {
      ASSERT_FALSE(written.contains(copy.from)) << "read and written";
      contents[static_cast<size_t>(copy.to)] = contents[static_cast<size_t>(copy.from)];
      pending.erase(copy.to);
      ++copied;
    }
  }

  void start() {
    // Few tokens and many repetitions: prefixes coincide often.
    Live sequence;
    sequence.salt = below(4) == 0 ? "salt" : "";
    if (!live.empty() && below(2) == 0) {
      const Live& model = any();
      const size_t length = 1 + below(static_cast<uint32_t>(model.tokens.size()));
      for (size_t i = 0; i < length; ++i) sequence.push(model.tokens[i]);
    }
    for (uint32_t i = 1 + below(12); i > 0; --i) sequence.push(below(2));
    sequence.table = blocks.make_table(sequence.salt);
    const auto tail = below(2) == 0 ? BlockManager::Tail::kLeave : BlockManager::Tail::kCopy;
    const auto match = blocks.match_prefix(sequence.table, sequence.tokens, tail);
    const uint64_t available = blocks.available_pages();
    const bool copies = match.tail_tokens > 0 && available > match.unreferenced;
    sequence.num_computed = blocks.acquire_prefix(sequence.table, sequence.tokens, tail);
    ASSERT_EQ(match.blocks * kBlock + (copies ? match.tail_tokens : 0), sequence.num_computed);
    if (copies) {
      ASSERT_EQ(available - match.unreferenced - 1, blocks.available_pages());
      ASSERT_TRUE(blocks.is_writable(sequence.table.pages().back()));
      ASSERT_FALSE(pending.contains(match.tail_page)) << "a copy of what is no copy yet";
      pending.insert(sequence.table.pages().back());
    }
    ASSERT_LT(sequence.num_computed, sequence.tokens.size());
    found += sequence.num_computed;
    for (size_t i = 0; i < size_t{match.blocks} * kBlock; ++i) {
      ASSERT_EQ(content(sequence.table.pages()[i / kBlock], i), sequence.names[i]) << "stale data";
    }
    live.push_back(std::move(sequence));
    copy_pages();
    check_contents(live.back(), "a prefix that was found");
  }

  // Some tokens are computed, perhaps one is generated.
  void step() {
    Live& sequence = any();
    copy_pages();
    if (GetParam().window != 0) blocks.release_before(sequence.table, first_seen(sequence));
    if (sequence.num_computed == sequence.tokens.size()) sequence.push(below(2));
    const size_t end =
        sequence.num_computed + 1 + below(static_cast<uint32_t>(sequence.tokens.size() - sequence.num_computed));
    const uint64_t available = blocks.available_pages();
    const uint64_t held = sequence.table.pages().size();
    const uint64_t wanted = blocks.pages_for(end);
    const bool fits = wanted <= held || wanted - held <= available;
    ASSERT_EQ(blocks.grow(sequence.table, end), fits);
    if (!fits) return;
    check_contents(sequence, "before a step");
    for (size_t i = sequence.num_computed; i < end; ++i) {
      const PageId page = sequence.table.pages()[i / kBlock];
      ASSERT_TRUE(blocks.is_writable(page)) << "write to a shared page";
      ASSERT_FALSE(pending.contains(page)) << "write to a page that is copied to later";
      content(page, i) = sequence.names[i];
    }
    sequence.num_computed = end;
    blocks.commit(sequence.table, std::span(sequence.tokens).first(end));
    check_contents(sequence, "after a step");
  }

  // A step of a sequence that goes on in two.
  void fork() {
    const size_t index = below(static_cast<uint32_t>(live.size()));
    if (live[index].num_computed != live[index].tokens.size()) return;
    const size_t length = live[index].num_computed;
    if (blocks.available_pages() < blocks.tail_pages(length)) return;
    Live child;
    child.salt = live[index].salt;
    child.tokens = live[index].tokens;
    child.names = live[index].names;
    child.num_computed = length;
    child.table = blocks.make_table(child.salt);
    blocks.fork(live[index].table, child.table, length);
    if (blocks.tail_pages(length) > 0) pending.insert(child.table.pages().back());
    copy_pages();  // of the step that computed it: not this one
    live.push_back(std::move(child));
    ++forks;
  }

  void end(bool forget) {
    const uint32_t victim = below(static_cast<uint32_t>(live.size()));
    for (const PageId page : live[victim].table.pages()) pending.erase(page);
    forget ? blocks.forget(live[victim].table) : blocks.release(live[victim].table);
    std::swap(live[victim], live.back());
    live.pop_back();
  }

  void check_pool() {
    ASSERT_EQ(blocks.audit(), "");
    std::unordered_set<PageId> referenced;
    for (const Live& sequence : live) {
      referenced.insert(sequence.table.pages().begin(), sequence.table.pages().end());
      ASSERT_GE(sequence.table.pages().size() * kBlock, sequence.num_computed);
    }
    referenced.erase(kNoPage);
    const BlockStats stats = blocks.stats();
    // The source of a copy to come may be held by nobody else.
    ASSERT_GE(stats.pages_referenced, referenced.size());
    ASSERT_LE(stats.pages_referenced, referenced.size() + pending.size());
    ASSERT_EQ(stats.pages_free + stats.pages_cached + stats.pages_referenced, stats.pages_total);
  }

  void check_events() {
    events.clear();
    blocks.take_events(events);
    for (const auto& event : events) ASSERT_NO_FATAL_FAILURE(router.apply(event, kBlock));
  }

  BlockManager blocks;
  std::vector<std::vector<uint64_t>> contents;
  std::set<PageId> pending;  // are copied to by a step to come
  std::vector<Live> live;
  RouterIndex router;
  std::vector<llm::KvEvent> events;
  std::mt19937 random;
  uint64_t found = 0;
  uint64_t copied = 0;
  uint64_t forks = 0;
};

TEST_P(BlockManagerProperty, NoLeakNoDoubleUseNoStaleDataNoWriteToASharedPage) {
  const uint32_t num_pages = GetParam().num_pages;
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  random.seed(seed);
  for (int operation = 0; operation < kOperations; ++operation) {
    const uint32_t dice = below(1000);
    const bool full = live.size() > 3 + num_pages / 5;  // more than the pool has room for, if each is alone
    if (live.empty() || (dice < 250 && !full)) {
      start();
    } else if (dice < 700) {
      step();
    } else if (dice < 800) {
      fork();
    } else if (dice < 998) {
      if (full || below(3) == 0) end(dice == 997);
    } else if (below(20) == 0) {
      blocks.clear_cache();
    }
    if (operation % 16 == 0) check_events();
    if (operation % (16 + static_cast<int>(num_pages)) == 0) check_pool();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(found, 0U);
  EXPECT_GT(copied, 0U);
  EXPECT_GT(forks, 0U);
  if (num_pages < 100) EXPECT_GT(blocks.stats().evictions, 0U);
  for (Live& sequence : live) blocks.release(sequence.table);
  EXPECT_EQ(blocks.stats().pages_referenced, 0U);
  EXPECT_EQ(blocks.stats().pages_free + blocks.stats().pages_cached, num_pages);
  ASSERT_NO_FATAL_FAILURE(check_events());
  EXPECT_EQ(router.size(), blocks.stats().pages_cached);
  EXPECT_EQ(blocks.audit(), "");
}

INSTANTIATE_TEST_SUITE_P(Sizes, BlockManagerProperty,
                         ::testing::Values(PoolCase{8, 64, 0}, PoolCase{40, 64, 0}, PoolCase{2000, 64, 0},
                                           // Most hashes collide: tokens, parent and salt decide.
                                           PoolCase{40, 3, 0}, PoolCase{2000, 8, 0},
                                           // Pages are given back from the front.
                                           PoolCase{40, 64, 6}, PoolCase{300, 64, 9}, PoolCase{40, 3, 5}));

}  // namespace
}  // namespace dyn::native

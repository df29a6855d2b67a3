// BlockManager: who holds which page of the KV pool, and which pages hold a prefix that can be used again.
//
//   BlockManager blocks({.num_pages = 1000, .tokens_per_block = 32});
//   BlockTable table = blocks.make_table(cache_salt);
//   uint32_t cached = blocks.acquire_prefix(table, prompt);     // tokens whose KV is there already
//   if (!blocks.grow(table, prompt.size())) ...                 // no pages left
//   blocks.take_copies(plan.page_copies);                       // of the step that is planned now
//   // ... a step computed KV for the first n tokens ...
//   blocks.commit(table, tokens.first(n));                      // full blocks can be found from now on
//   blocks.release_before(table, n - window);                   // nobody looks at these any more
//   blocks.release(table);
//
// A page is free, referenced (by one or more tables), or cached and unreferenced; the last are taken back, least
// recently used first, when free pages run out. Only a page that is full, computed and committed enters the cache, and
// nobody writes to it any more; so a shared page is never written. When two sequences computed the same block, commit()
// keeps the page that came first and gives the other back.
//
// Where a match ends inside a cached block, or a sequence goes on in two (fork), the page is copied and the copy
// belongs to one table: copy-on-write. The copies are made by the executor: take_copies() says which, once for every
// step. Until then their sources are held.
//
// A cached block's parent is cached too: a prefix is found from its start or not at all. As long as tables keep all
// their pages, whoever references a block references all blocks before it, so the least recently used block has no
// cached child. release_before() breaks that for models with a window: there, the last unreferenced block that
// continues it is taken back in its place, and what is behind that one leaves the cache. In both cases removal events
// tell children before parents. A match compares tokens, parent and salt, not only hashes: nobody gets another's KV by
// a crafted collision.
//
// Pure: no I/O, no clock, no randomness. Ownership: tables refer to their manager and must be released before they are
// dropped. Sizes in tokens or pages as named. Thread rules: one thread. Steady state allocates nothing but event data.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llm/block_hash.h"
#include "llm/kv_event.h"
#include "native/exec/step_plan.h"

namespace dyn::native {

using llm::BlockHash;

struct BlockManagerOptions {
  uint32_t num_pages = 0;
  uint32_t tokens_per_block = 32;
  bool enable_reuse = true;
  bool record_events = true;  // somebody takes them with take_events()
  uint32_t hash_bits = 64;    // fewer only in tests, to see collisions
};

// The pages of one sequence, in order. Made and changed by a BlockManager only.
class BlockTable {
 public:
  BlockTable() = default;
  BlockTable(BlockTable&&) = default;
  BlockTable& operator=(BlockTable&&) = default;

  // kNoPage stands for pages that were given back before the others.
  [[nodiscard]] std::span<const PageId> pages() const { return pages_; }

 private:
  friend class BlockManager;
  // A block's stay in the cache; over when the page is no longer the node.
  struct Cached {
    PageId page = kNoPage;
    uint64_t node = 0;
    BlockHash hash = 0;
  };

  std::vector<PageId> pages_;
  uint32_t num_dropped_ = 0;    // leading pages that were given back
  uint32_t num_committed_ = 0;  // leading pages that were found or put in the cache
  Cached first_;                // of those, the first and the last one
  Cached last_;
  bool cacheable_ = true;  // false: a block could not enter the cache, so none after it can
  std::string salt_;
  uint64_t seed_ = 0;
};

struct BlockStats {
  uint64_t pages_total = 0;
  uint64_t pages_free = 0;        // hold nothing
  uint64_t pages_cached = 0;      // hold a prefix nobody uses now
  uint64_t pages_referenced = 0;  // held by tables
  uint64_t hits = 0;              // blocks that acquire_prefix() found, and those it looked for in vain
  uint64_t misses = 0;
  uint64_t tail_hits = 0;  // of the misses: blocks of which it found the head
  uint64_t evictions = 0;  // blocks that left the cache for want of pages
};

class BlockManager {
 public:
  explicit BlockManager(const BlockManagerOptions& options);

  [[nodiscard]] BlockTable make_table(std::string_view cache_salt) const;

  // Whether a block of which only the head matches is used too, by a copy.
  enum class Tail : bool { kLeave, kCopy };

  struct PrefixMatch {
    uint32_t blocks = 0;         // that acquire_prefix() would take
    uint32_t tail_tokens = 0;    // that it would take of one more, by a copy
    PageId tail_page = kNoPage;  // what it would copy
    uint32_t unreferenced = 0;   // pages that would leave available_pages(), beside the one that is copied to
  };
  [[nodiscard]] PrefixMatch match_prefix(const BlockTable& empty, std::span<const TokenId> tokens,
                                         Tail tail = Tail::kLeave) const;

  // References the longest cached prefix of `tokens`, which always leaves out the last one: its logits are wanted, so
  // it must be computed. Returns the number of tokens found. The table must have no pages.
  uint32_t acquire_prefix(BlockTable& table, std::span<const TokenId> tokens, Tail tail = Tail::kLeave);

  // A second table for a sequence of `num_tokens`: full pages are shared, the last one is copied before the step after
  // the one that is planned now. Needs tail_pages(num_tokens) available pages. `to` is a new table of the same salt.
  void fork(const BlockTable& from, BlockTable& to, uint64_t num_tokens);
  [[nodiscard]] uint64_t tail_pages(uint64_t num_tokens) const {
    return num_tokens % options_.tokens_per_block == 0 ? 0 : 1;
  }

  // Appends the copies of the step that is planned now: call it once for every step, before the next is planned.
  void take_copies(std::vector<PageCopy>& out);

  // Makes the table large enough for `num_tokens`; takes all pages needed or none and returns false.
  [[nodiscard]] bool grow(BlockTable& table, uint64_t num_tokens);

  // `tokens`: those from the start of the sequence whose KV is computed.
  void commit(BlockTable& table, std::span<const TokenId> tokens);

  // Gives back pages that end at or before `first_token`; the table keeps their places. Blocks that are still to enter
  // the cache are kept until they did.
  void release_before(BlockTable& table, uint64_t first_token);

  void release(BlockTable& table);

  // Releases, and takes these blocks and all that continue them out of the cache: their KV cannot be trusted.
  void forget(BlockTable& table);

  // Empties the cache; tables keep their pages.
  void clear_cache();

  // Pages that grow() can hand out: free ones and unreferenced cached ones.
  [[nodiscard]] uint64_t available_pages() const { return free_.size() + num_lru_; }
  [[nodiscard]] uint64_t pages_for(uint64_t num_tokens) const {
    return (num_tokens + options_.tokens_per_block - 1) / options_.tokens_per_block;
  }
  [[nodiscard]] BlockStats stats() const;
  [[nodiscard]] const BlockManagerOptions& options() const { return options_; }

  // May KV be written to this page? Only to one that a single table holds and that is not in the cache.
  [[nodiscard]] bool is_writable(PageId page) const;

  // Appends the events since the last call to `out`.
  void take_events(std::vector<llm::KvEvent>& out);

  // Empty, or what is inconsistent: for tests.
  [[nodiscard]] std::string audit() const;

 private:
  using NodeId = uint64_t;  // names one stay of a block in the cache; never used again
  static constexpr NodeId kNoNode = 0;
  using Cached = BlockTable::Cached;

  struct Page {
    uint32_t refs = 0;
    NodeId node = kNoNode;    // set: in the cache
    NodeId parent = kNoNode;  // kNoNode: first block of a sequence
    BlockHash hash = 0;
    std::string salt;  // of a first block
    PageId parent_page = kNoPage;
    PageId first_child = kNoPage;  // cached blocks that continue it
    PageId sibling_before = kNoPage;
    PageId sibling_after = kNoPage;
    PageId next_in_bucket = kNoPage;
    PageId lru_before = kNoPage;
    PageId lru_after = kNoPage;
  };

  Page& at(PageId page) { return pages_[static_cast<size_t>(page)]; }
  [[nodiscard]] const Page& at(PageId page) const { return pages_[static_cast<size_t>(page)]; }
  [[nodiscard]] std::span<const TokenId> tokens_of(PageId page) const;
  [[nodiscard]] BlockHash hash_of(const BlockTable& table, const Cached& parent, std::span<const TokenId> block) const;

  // The page with this hash, whatever else it holds.
  [[nodiscard]] PageId find(BlockHash hash) const;
  [[nodiscard]] bool holds(PageId page, const BlockTable& table, NodeId parent, std::span<const TokenId> block) const;
  [[nodiscard]] bool is_cached(const Cached& block) const {
    return block.page != kNoPage && at(block.page).node == block.node;
  }
  [[nodiscard]] Cached cached(PageId page) const { return {page, at(page).node, at(page).hash}; }
  // Calls visit(page) for the blocks of the longest cached prefix; gives the last one.
  template <class Visit>
  Cached walk_prefix(const BlockTable& table, std::span<const TokenId> tokens, Visit visit) const;
  // The block behind `parent` that begins with most of `tokens`, and how many.
  [[nodiscard]] std::pair<PageId, uint32_t> find_head(const BlockTable& table, const Cached& parent,
                                                      std::span<const TokenId> tokens) const;
  void cancel_copies(const BlockTable& table, std::vector<PageCopy>& copies);

  void reference(PageId page);
  void unreference(PageId page);
  void insert(PageId page, const BlockTable& table, const Cached& parent, BlockHash hash,
              std::span<const TokenId> block);
  void uncache(PageId page);  // of a block without children
  // Takes a block and all that continue it out of the cache, children first. Returns their number.
  uint64_t remove_branch(PageId page);
  PageId& first_child_of(PageId parent) { return parent == kNoPage ? first_root_ : at(parent).first_child; }
  PageId take_page();

  void lru_push_back(PageId page);
  void lru_remove(PageId page);

  void note_stored(const Cached& parent, BlockHash hash, std::span<const TokenId> block, std::string_view salt,
                   bool continues);
  void note_removed(BlockHash hash);

  [[nodiscard]] size_t bucket_of(BlockHash hash) const { return hash & (buckets_.size() - 1); }

  const BlockManagerOptions options_;
  bool record_events_ = options_.record_events;
  std::vector<Page> pages_;
  std::vector<TokenId> page_tokens_;  // [num_pages * tokens_per_block], of cached pages
  std::vector<PageId> free_;
  std::vector<PageId> buckets_;
  PageId first_root_ = kNoPage;  // first blocks of sequences
  PageId lru_first_ = kNoPage;   // evicted next
  PageId lru_last_ = kNoPage;
  uint64_t num_lru_ = 0;
  NodeId last_node_ = kNoNode;
  bool any_dropped_ = false;           // release_before() gave pages back
  std::vector<PageCopy> copies_;       // of the step that is planned now; sources are referenced
  std::vector<PageCopy> late_copies_;  // of the one after it
  uint64_t tail_hits_ = 0;
  uint64_t hits_ = 0;
  uint64_t misses_ = 0;
  uint64_t evictions_ = 0;
  std::vector<llm::KvEvent> events_;
};

}  // namespace dyn::native

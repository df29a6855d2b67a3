#include "native/kv/block_manager.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <iterator>
#include <tuple>
#include <unordered_set>
#include <utility>

namespace dyn::native {
namespace {

// Of a block that is used by a copy at least this share must match: below it computing is as cheap as copying.
constexpr uint32_t kMinTailShare = 4;  // a quarter
// Blocks that are compared to find the one with the longest common head, the newest first.
constexpr int kMaxTailCandidates = 64;

}  // namespace

BlockManager::BlockManager(const BlockManagerOptions& options)
    : options_(options),
      pages_(options.num_pages),
      page_tokens_(options.enable_reuse ? size_t{options.num_pages} * options.tokens_per_block : 0),
      buckets_(std::bit_ceil(size_t{options.num_pages} + 1), kNoPage) {
  assert(options_.tokens_per_block > 0);
  free_.reserve(options_.num_pages);
  for (uint32_t page = options_.num_pages; page-- > 0;) free_.push_back(static_cast<PageId>(page));
}

BlockTable BlockManager::make_table(std::string_view cache_salt) const {
  BlockTable table;
  table.salt_ = cache_salt;
  table.seed_ = llm::block_hash_seed(cache_salt);
  return table;
}

std::span<const TokenId> BlockManager::tokens_of(PageId page) const {
  return std::span(page_tokens_)
      .subspan(static_cast<size_t>(page) * options_.tokens_per_block, options_.tokens_per_block);
}

BlockHash BlockManager::hash_of(const BlockTable& table, const Cached& parent, std::span<const TokenId> block) const {
  const auto before = parent.node == kNoNode ? std::nullopt : std::optional(parent.hash);
  return llm::chain_block_hash(before, llm::hash_block_tokens(block, table.seed_)) >> (64 - options_.hash_bits);
}

PageId BlockManager::find(BlockHash hash) const {
  PageId page = buckets_[bucket_of(hash)];
  while (page != kNoPage && at(page).hash != hash) page = at(page).next_in_bucket;
  return page;
}

bool BlockManager::holds(PageId page, const BlockTable& table, NodeId parent, std::span<const TokenId> block) const {
  return at(page).parent == parent && (parent != kNoNode || at(page).salt == table.salt_) &&
         std::ranges::equal(tokens_of(page), block);
}

template <class Visit>
BlockManager::Cached BlockManager::walk_prefix(const BlockTable& table, std::span<const TokenId> tokens,
                                               Visit visit) const {
  assert(table.pages_.empty());
  Cached parent;
  if (!options_.enable_reuse) return parent;
  for (size_t end = options_.tokens_per_block; end < tokens.size(); end += options_.tokens_per_block) {
    const auto block = tokens.subspan(end - options_.tokens_per_block, options_.tokens_per_block);
    const BlockHash hash = hash_of(table, parent, block);
    const PageId page = find(hash);
    if (page == kNoPage || !holds(page, table, parent.node, block)) break;
    parent = cached(page);
    visit(page);
  }
  return parent;
}

std::pair<PageId, uint32_t> BlockManager::find_head(const BlockTable& table, const Cached& parent,
                                                    std::span<const TokenId> tokens) const {
  std::pair<PageId, uint32_t> best{kNoPage, 0};
  if (!options_.enable_reuse) return best;
  PageId page = parent.node == kNoNode ? first_root_ : at(parent.page).first_child;
  for (int i = 0; i < kMaxTailCandidates && page != kNoPage; ++i, page = at(page).sibling_after) {
    if (parent.node == kNoNode && at(page).salt != table.salt_) continue;
    const auto common = static_cast<uint32_t>(std::ranges::mismatch(tokens_of(page), tokens).in2 - tokens.begin());
    if (common > best.second) best = {page, common};
  }
  return best.second * kMinTailShare < options_.tokens_per_block ? std::pair{kNoPage, 0U} : best;
}

BlockManager::PrefixMatch BlockManager::match_prefix(const BlockTable& empty, std::span<const TokenId> tokens,
                                                     Tail tail) const {
  PrefixMatch match;
  const Cached last = walk_prefix(empty, tokens, [&](PageId page) {
    ++match.blocks;
    if (at(page).refs == 0) ++match.unreferenced;
  });
  const size_t begin = size_t{match.blocks} * options_.tokens_per_block;
  if (tail == Tail::kLeave || begin + 1 >= tokens.size()) return match;
  std::tie(match.tail_page, match.tail_tokens) =
      find_head(empty, last, tokens.subspan(begin, tokens.size() - 1 - begin));
  if (match.tail_page != kNoPage && at(match.tail_page).refs == 0) ++match.unreferenced;
  return match;
}

uint32_t BlockManager::acquire_prefix(BlockTable& table, std::span<const TokenId> tokens, Tail tail) {
  table.last_ = walk_prefix(table, tokens, [&](PageId page) { table.pages_.push_back(page); });
  for (const PageId page : table.pages_) reference(page);
  table.num_committed_ = static_cast<uint32_t>(table.pages_.size());
  table.num_dropped_ = 0;
  table.cacheable_ = true;
  if (!table.pages_.empty()) table.first_ = cached(table.pages_.front());
  if (!options_.enable_reuse || tokens.empty()) return 0;
  hits_ += table.num_committed_;
  misses_ += (tokens.size() - 1) / options_.tokens_per_block - table.num_committed_;
  const uint32_t found = table.num_committed_ * options_.tokens_per_block;
  if (tail == Tail::kLeave || found + 1 >= tokens.size()) return found;

  const auto [source, common] = find_head(table, table.last_, tokens.subspan(found, tokens.size() - 1 - found));
  if (source == kNoPage) return found;
  reference(source);
  if (available_pages() == 0) {
    unreference(source);
    return found;
  }
  const PageId copy = take_page();
  at(copy).refs = 1;
  table.pages_.push_back(copy);
  copies_.push_back({.from = source, .to = copy});
  ++tail_hits_;
  return found + common;
}

void BlockManager::fork(const BlockTable& from, BlockTable& to, uint64_t num_tokens) {
  assert(to.pages_.empty() && from.salt_ == to.salt_);
  const uint64_t full = num_tokens / options_.tokens_per_block;
  assert(from.pages_.size() >= pages_for(num_tokens) && from.num_committed_ <= full);
  to.pages_.assign(from.pages_.begin(), from.pages_.begin() + static_cast<std::ptrdiff_t>(full));
  for (const PageId page : to.pages_) {
    if (page != kNoPage) reference(page);
  }
  to.num_dropped_ = from.num_dropped_;
  to.num_committed_ = from.num_committed_;
  to.first_ = from.first_;
  to.last_ = from.last_;
  to.cacheable_ = from.cacheable_;
  if (tail_pages(num_tokens) == 0) return;
  const PageId source = from.pages_[full];
  reference(source);
  const PageId copy = take_page();
  at(copy).refs = 1;
  to.pages_.push_back(copy);
  late_copies_.push_back({.from = source, .to = copy});
}

void BlockManager::take_copies(std::vector<PageCopy>& out) {
  out.insert(out.end(), copies_.begin(), copies_.end());
  for (const PageCopy& copy : copies_) unreference(copy.from);
  copies_.clear();
  copies_.swap(late_copies_);
}

// A copy that nobody will read.
void BlockManager::cancel_copies(const BlockTable& table, std::vector<PageCopy>& copies) {
  std::erase_if(copies, [&](const PageCopy& copy) {
    if (std::ranges::find(table.pages_, copy.to) == table.pages_.end()) return false;
    unreference(copy.from);
    return true;
  });
}

bool BlockManager::grow(BlockTable& table, uint64_t num_tokens) {
  const uint64_t wanted = pages_for(num_tokens);
  const uint64_t held = table.pages_.size();
  if (wanted <= held) return true;
  if (wanted - held > available_pages()) return false;
  for (uint64_t i = held; i < wanted; ++i) {
    const PageId page = take_page();
    at(page).refs = 1;
    table.pages_.push_back(page);
  }
  return true;
}

void BlockManager::commit(BlockTable& table, std::span<const TokenId> tokens) {
  if (!options_.enable_reuse || !table.cacheable_) return;
  bool continues = false;  // the block before was stored by this call
  for (uint32_t i = table.num_committed_; (i + uint64_t{1}) * options_.tokens_per_block <= tokens.size(); ++i) {
    // Somebody took the block before out of the cache: without it this one cannot be found.
    if (i > 0 && !is_cached(table.last_)) {
      table.cacheable_ = false;
      return;
    }
    const Cached parent = i > 0 ? table.last_ : Cached{};
    const auto block = tokens.subspan(size_t{i} * options_.tokens_per_block, options_.tokens_per_block);
    const BlockHash hash = hash_of(table, parent, block);
    const PageId own = table.pages_[i];
    if (const PageId found = find(hash); found == kNoPage) {
      insert(own, table, parent, hash, block);
      note_stored(parent, hash, block, table.salt_, continues);
      continues = true;
    } else if (found == own) {  // a page that two tables share; the other one was first
      continues = false;
    } else if (holds(found, table, parent.node, block)) {
      reference(found);
      unreference(own);
      table.pages_[i] = found;
      continues = false;
    } else {
      table.cacheable_ = false;  // a collision: one hash cannot name two blocks
      return;
    }
    table.num_committed_ = i + 1;
    table.last_ = cached(table.pages_[i]);
    if (i == 0) table.first_ = table.last_;
  }
}

void BlockManager::release_before(BlockTable& table, uint64_t first_token) {
  uint64_t end = std::min<uint64_t>(first_token / options_.tokens_per_block, table.pages_.size());
  if (options_.enable_reuse && table.cacheable_) end = std::min<uint64_t>(end, table.num_committed_);
  for (; table.num_dropped_ < end; ++table.num_dropped_) {
    any_dropped_ = true;
    unreference(std::exchange(table.pages_[table.num_dropped_], kNoPage));
  }
}

void BlockManager::release(BlockTable& table) {
  cancel_copies(table, copies_);
  cancel_copies(table, late_copies_);
  // Last block first: a child becomes the older one in the order of eviction.
  for (size_t i = table.pages_.size(); i-- > table.num_dropped_;) unreference(table.pages_[i]);
  table.pages_.clear();
  table.num_dropped_ = 0;
  table.num_committed_ = 0;
  table.first_ = {};
  table.last_ = {};
  table.cacheable_ = true;
}

void BlockManager::forget(BlockTable& table) {
  const Cached first = table.first_;
  release(table);
  if (is_cached(first)) remove_branch(first.page);
}

uint64_t BlockManager::remove_branch(PageId page) {
  uint64_t removed = 0;
  for (PageId at_page = page;;) {
    while (at(at_page).first_child != kNoPage) at_page = at(at_page).first_child;
    const PageId parent = at(at_page).parent_page;
    note_removed(at(at_page).hash);
    uncache(at_page);
    ++removed;
    if (at(at_page).refs == 0) {
      lru_remove(at_page);
      free_.push_back(at_page);
    }
    if (at_page == page) return removed;
    at_page = parent;
  }
}

void BlockManager::clear_cache() {
  const bool record = std::exchange(record_events_, false);  // one event says it all
  const bool any = first_root_ != kNoPage;
  while (first_root_ != kNoPage) remove_branch(first_root_);
  record_events_ = record;
  if (any && record_events_) events_.emplace_back(llm::KvCleared{});
}

BlockStats BlockManager::stats() const {
  return {.pages_total = pages_.size(),
          .pages_free = free_.size(),
          .pages_cached = num_lru_,
          .pages_referenced = pages_.size() - available_pages(),
          .hits = hits_,
          .misses = misses_,
          .tail_hits = tail_hits_,
          .evictions = evictions_};
}

bool BlockManager::is_writable(PageId page) const {
  return at(page).refs == 1 && at(page).node == kNoNode;
}

void BlockManager::take_events(std::vector<llm::KvEvent>& out) {
  out.insert(out.end(), std::make_move_iterator(events_.begin()), std::make_move_iterator(events_.end()));
  events_.clear();
}

void BlockManager::reference(PageId page) {
  if (at(page).refs++ == 0) lru_remove(page);
}

void BlockManager::unreference(PageId page) {
  assert(at(page).refs > 0);
  if (--at(page).refs > 0) return;
  if (at(page).node != kNoNode) {
    lru_push_back(page);
  } else {
    free_.push_back(page);
  }
}

void BlockManager::insert(PageId page, const BlockTable& table, const Cached& parent, BlockHash hash,
                          std::span<const TokenId> block) {
  assert(at(page).refs > 0 && at(page).node == kNoNode && at(page).first_child == kNoPage);
  Page& entry = at(page);
  entry.node = ++last_node_;
  entry.parent = parent.node;
  entry.parent_page = parent.page;
  entry.hash = hash;
  if (parent.node == kNoNode) entry.salt = table.salt_;
  std::ranges::copy(block, page_tokens_.begin() + static_cast<std::ptrdiff_t>(page) * options_.tokens_per_block);
  entry.next_in_bucket = std::exchange(buckets_[bucket_of(hash)], page);
  entry.sibling_before = kNoPage;
  entry.sibling_after = std::exchange(first_child_of(parent.page), page);
  if (entry.sibling_after != kNoPage) at(entry.sibling_after).sibling_before = page;
}

void BlockManager::uncache(PageId page) {
  Page& entry = at(page);
  assert(entry.first_child == kNoPage);
  PageId* link = &buckets_[bucket_of(entry.hash)];
  while (*link != page) link = &at(*link).next_in_bucket;
  *link = std::exchange(entry.next_in_bucket, kNoPage);
  (entry.sibling_before == kNoPage ? first_child_of(entry.parent_page) : at(entry.sibling_before).sibling_after) =
      entry.sibling_after;
  if (entry.sibling_after != kNoPage) at(entry.sibling_after).sibling_before = entry.sibling_before;
  entry.sibling_before = entry.sibling_after = kNoPage;
  entry.node = kNoNode;
  entry.parent = kNoNode;
  entry.parent_page = kNoPage;
  entry.salt.clear();
}

PageId BlockManager::take_page() {
  if (free_.empty()) {
    assert(lru_first_ != kNoPage);
    // The last one that nobody references, so that a prefix becomes shorter and not unfindable.
    PageId last = lru_first_;
    for (PageId child = at(last).first_child; child != kNoPage;) {
      const bool referenced = at(child).refs > 0;
      if (!referenced) last = child;
      child = referenced ? at(child).sibling_after : at(child).first_child;
    }
    evictions_ += remove_branch(last);
  }
  const PageId page = free_.back();
  free_.pop_back();
  return page;
}

void BlockManager::lru_push_back(PageId page) {
  at(page).lru_before = lru_last_;
  at(page).lru_after = kNoPage;
  (lru_last_ == kNoPage ? lru_first_ : at(lru_last_).lru_after) = page;
  lru_last_ = page;
  ++num_lru_;
}

void BlockManager::lru_remove(PageId page) {
  Page& entry = at(page);
  (entry.lru_before == kNoPage ? lru_first_ : at(entry.lru_before).lru_after) = entry.lru_after;
  (entry.lru_after == kNoPage ? lru_last_ : at(entry.lru_after).lru_before) = entry.lru_before;
  entry.lru_before = entry.lru_after = kNoPage;
  --num_lru_;
}

void BlockManager::note_stored(const Cached& parent, BlockHash hash, std::span<const TokenId> block,
                               std::string_view salt, bool continues) {
  if (!record_events_) return;
  if (!continues) {
    events_.emplace_back(
        llm::KvBlocksStored{.parent = parent.node == kNoNode ? std::nullopt : std::optional(parent.hash),
                            .block_size = options_.tokens_per_block,
                            .cache_salt = std::string(salt)});
  }
  auto& event = std::get<llm::KvBlocksStored>(events_.back());
  event.blocks.push_back(hash);
  event.tokens.insert(event.tokens.end(), block.begin(), block.end());
}

void BlockManager::note_removed(BlockHash hash) {
  if (!record_events_) return;
  if (events_.empty() || !std::holds_alternative<llm::KvBlocksRemoved>(events_.back())) {
    events_.emplace_back(llm::KvBlocksRemoved{});
  }
  std::get<llm::KvBlocksRemoved>(events_.back()).blocks.push_back(hash);
}

std::string BlockManager::audit() const {
  std::vector<int> seen(pages_.size(), 0);
  for (const PageId page : free_) {
    if (++seen[static_cast<size_t>(page)] > 1) return fmt::format("page {} is free twice", page);
    if (at(page).refs != 0 || at(page).node != kNoNode) return fmt::format("free page {} is in use", page);
  }
  uint64_t lru = 0;
  std::unordered_set<NodeId> nodes_before;
  for (PageId page = lru_first_, before = kNoPage; page != kNoPage; before = page, page = at(page).lru_after) {
    if (++seen[static_cast<size_t>(page)] > 1) return fmt::format("page {} is free and cached", page);
    if (at(page).refs != 0 || at(page).node == kNoNode) return fmt::format("page {} must not be evicted", page);
    if (at(page).lru_before != before) return fmt::format("page {} has a wrong neighbour", page);
    if (!any_dropped_ && nodes_before.contains(at(page).parent))
      return fmt::format("page {} would be evicted after its parent", page);
    nodes_before.insert(at(page).node);
    ++lru;
  }
  if (lru != num_lru_) return fmt::format("{} pages are cached, {} were counted", lru, num_lru_);
  for (size_t i = 0; i < pages_.size(); ++i) {
    const auto page = static_cast<PageId>(i);
    if (seen[i] == 0 && at(page).refs == 0) return fmt::format("page {} is lost", page);
    if (at(page).node != kNoNode && find(at(page).hash) != page) return fmt::format("page {} cannot be found", page);
    if (at(page).node == kNoNode) {
      if (at(page).first_child != kNoPage) return fmt::format("page {} has children, but is not cached", page);
      continue;
    }
    const PageId parent = at(page).parent_page;
    if (parent != kNoPage && at(parent).node != at(page).parent)
      return fmt::format("the parent of page {} is gone", page);
    const PageId before = at(page).sibling_before;
    const PageId first = parent == kNoPage ? first_root_ : at(parent).first_child;
    if (before == kNoPage ? first != page : at(before).sibling_after != page)
      return fmt::format("page {} is not among its siblings", page);
  }
  return {};
}

}  // namespace dyn::native

#include "native/kv/block_manager.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <iterator>
#include <unordered_set>
#include <utility>

namespace dyn::native {

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

BlockHash BlockManager::hash_of(const BlockTable& table, const Parent& parent, std::span<const TokenId> block) const {
  return llm::chain_block_hash(parent.hash, llm::hash_block_tokens(block, table.seed_)) >> (64 - options_.hash_bits);
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
void BlockManager::walk_prefix(const BlockTable& table, std::span<const TokenId> tokens, Visit visit) const {
  assert(table.pages_.empty());
  if (!options_.enable_reuse) return;
  Parent parent;
  for (size_t end = options_.tokens_per_block; end < tokens.size(); end += options_.tokens_per_block) {
    const auto block = tokens.subspan(end - options_.tokens_per_block, options_.tokens_per_block);
    const BlockHash hash = hash_of(table, parent, block);
    const PageId page = find(hash);
    if (page == kNoPage || !holds(page, table, parent.node, block)) return;
    parent = {at(page).node, hash};
    visit(page);
  }
}

BlockManager::PrefixMatch BlockManager::match_prefix(const BlockTable& empty, std::span<const TokenId> tokens) const {
  PrefixMatch match;
  walk_prefix(empty, tokens, [&](PageId page) {
    ++match.blocks;
    if (at(page).refs == 0) ++match.unreferenced;
  });
  return match;
}

uint32_t BlockManager::acquire_prefix(BlockTable& table, std::span<const TokenId> tokens) {
  walk_prefix(table, tokens, [&](PageId page) { table.pages_.push_back(page); });
  for (const PageId page : table.pages_) reference(page);
  table.num_committed_ = static_cast<uint32_t>(table.pages_.size());
  table.cacheable_ = true;
  if (options_.enable_reuse && !tokens.empty()) {
    hits_ += table.num_committed_;
    misses_ += (tokens.size() - 1) / options_.tokens_per_block - table.num_committed_;
  }
  return table.num_committed_ * options_.tokens_per_block;
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
    Parent parent;
    if (i > 0) {
      const Page& before = at(table.pages_[i - 1]);
      // Somebody took the block before out of the cache: without it this one cannot be found.
      if (before.node == kNoNode) {
        table.cacheable_ = false;
        return;
      }
      parent = {before.node, before.hash};
    }
    const auto block = tokens.subspan(size_t{i} * options_.tokens_per_block, options_.tokens_per_block);
    const BlockHash hash = hash_of(table, parent, block);
    const PageId own = table.pages_[i];
    if (const PageId found = find(hash); found == kNoPage) {
      insert(own, table, parent, hash, block);
      note_stored(parent.hash, hash, block, table.salt_, continues);
      continues = true;
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
  }
}

void BlockManager::release(BlockTable& table) {
  // Last block first: a child becomes the older one in the order of eviction.
  for (size_t i = table.pages_.size(); i-- > 0;) unreference(table.pages_[i]);
  table.pages_.clear();
  table.num_committed_ = 0;
  table.cacheable_ = true;
}

void BlockManager::forget(BlockTable& table) {
  std::unordered_set<NodeId> gone;
  for (const PageId page : table.pages_) {
    if (at(page).node != kNoNode) gone.insert(at(page).node);
  }
  release(table);
  if (gone.empty()) return;
  // A child entered the cache after its parent, so one pass in that order finds all that continue the blocks. It looks
  // at every page, which is fine for what happens once in the life of a broken model.
  std::vector<PageId> cached;
  for (size_t i = 0; i < pages_.size(); ++i) {
    if (pages_[i].node != kNoNode) cached.push_back(static_cast<PageId>(i));
  }
  std::ranges::sort(cached, {}, [this](PageId page) { return at(page).node; });
  std::vector<PageId> doomed;
  for (const PageId page : cached) {
    if (!gone.contains(at(page).node) && !gone.contains(at(page).parent)) continue;
    gone.insert(at(page).node);
    doomed.push_back(page);
  }
  for (size_t i = doomed.size(); i-- > 0;) {  // children before parents
    const PageId page = doomed[i];
    note_removed(at(page).hash);
    uncache(page);
    if (at(page).refs == 0) {
      lru_remove(page);
      free_.push_back(page);
    }
  }
}

void BlockManager::clear_cache() {
  bool any = false;
  for (size_t i = 0; i < pages_.size(); ++i) {
    if (pages_[i].node == kNoNode) continue;
    const auto page = static_cast<PageId>(i);
    any = true;
    uncache(page);
    if (at(page).refs == 0) {
      lru_remove(page);
      free_.push_back(page);
    }
  }
  if (any && options_.record_events) events_.emplace_back(llm::KvCleared{});
}

BlockStats BlockManager::stats() const {
  return {.pages_total = pages_.size(),
          .pages_free = free_.size(),
          .pages_cached = num_lru_,
          .pages_referenced = pages_.size() - available_pages(),
          .hits = hits_,
          .misses = misses_,
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

void BlockManager::insert(PageId page, const BlockTable& table, const Parent& parent, BlockHash hash,
                          std::span<const TokenId> block) {
  assert(at(page).refs == 1 && at(page).node == kNoNode);
  Page& entry = at(page);
  entry.node = ++last_node_;
  entry.parent = parent.node;
  entry.hash = hash;
  if (parent.node == kNoNode) entry.salt = table.salt_;
  std::ranges::copy(block, page_tokens_.begin() + static_cast<std::ptrdiff_t>(page) * options_.tokens_per_block);
  entry.next_in_bucket = std::exchange(buckets_[bucket_of(hash)], page);
}

void BlockManager::uncache(PageId page) {
  Page& entry = at(page);
  PageId* link = &buckets_[bucket_of(entry.hash)];
  while (*link != page) link = &at(*link).next_in_bucket;
  *link = std::exchange(entry.next_in_bucket, kNoPage);
  entry.node = kNoNode;
  entry.parent = kNoNode;
  entry.salt.clear();
}

PageId BlockManager::take_page() {
  if (!free_.empty()) {
    const PageId page = free_.back();
    free_.pop_back();
    return page;
  }
  const PageId page = lru_first_;
  assert(page != kNoPage);
  lru_remove(page);
  note_removed(at(page).hash);
  uncache(page);
  ++evictions_;
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

void BlockManager::note_stored(const std::optional<BlockHash>& parent, BlockHash hash, std::span<const TokenId> block,
                               std::string_view salt, bool continues) {
  if (!options_.record_events) return;
  if (!continues) {
    events_.emplace_back(llm::KvBlocksStored{
        .parent = parent, .block_size = options_.tokens_per_block, .cache_salt = std::string(salt)});
  }
  auto& event = std::get<llm::KvBlocksStored>(events_.back());
  event.blocks.push_back(hash);
  event.tokens.insert(event.tokens.end(), block.begin(), block.end());
}

void BlockManager::note_removed(BlockHash hash) {
  if (!options_.record_events) return;
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
    if (nodes_before.contains(at(page).parent)) return fmt::format("page {} would be evicted after its parent", page);
    nodes_before.insert(at(page).node);
    ++lru;
  }
  if (lru != num_lru_) return fmt::format("{} pages are cached, {} were counted", lru, num_lru_);
  for (size_t i = 0; i < pages_.size(); ++i) {
    const auto page = static_cast<PageId>(i);
    if (seen[i] == 0 && at(page).refs == 0) return fmt::format("page {} is lost", page);
    if (at(page).node != kNoNode && find(at(page).hash) != page) return fmt::format("page {} cannot be found", page);
  }
  return {};
}

}  // namespace dyn::native

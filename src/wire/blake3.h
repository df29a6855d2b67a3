// BLAKE3, unkeyed, 256 bits: the digest that model cards and slugs carry.
//
//   Blake3 hash;
//   hash.update(part);
//   std::string hex = hash.hex();            // 64 lower-case digits; update() may go on afterwards
//   blake3_hex(as_bytes("abc"))              // "6437b3ac38465133..."
//
// A portable implementation (about 0.5 GB/s): enough for the tokenizer files of one start. The algorithm is that of the
// BLAKE3 paper (https://github.com/BLAKE3-team/BLAKE3-specs): chunks of 1024 bytes are the leaves of a binary tree
// whose left subtrees are full. Thread rules: one thread at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace dyn::wire {

class Blake3 {
 public:
  static constexpr size_t kDigestBytes = 32;
  using Digest = std::array<std::byte, kDigestBytes>;

  Blake3();
  void update(Bytes bytes);
  [[nodiscard]] Digest digest() const;
  [[nodiscard]] std::string hex() const;

 private:
  using ChainingValue = std::array<uint32_t, 8>;

  static constexpr size_t kBlockBytes = 64;
  static constexpr size_t kChunkBytes = 1024;
  static constexpr size_t kMaxDepth = 54;  // 2^64 bytes of input

  // What a compression takes; kept unfinished for the last block, whose flags depend on whether it is the root.
  struct Node {
    ChainingValue input;
    std::array<std::byte, kBlockBytes> block;
    uint64_t counter;
    uint32_t block_bytes;
    uint32_t flags;
  };

  static ChainingValue compress(const Node& node);
  static Node parent(const ChainingValue& left, const ChainingValue& right);
  void start_chunk(uint64_t index);
  void push_chunk(ChainingValue value);
  [[nodiscard]] Node last_block() const;

  // The chunk being filled. Its last block stays in `block_` until more input shows that it is not the last.
  ChainingValue chunk_value_;
  std::array<std::byte, kBlockBytes> block_;
  size_t block_bytes_ = 0;
  size_t blocks_done_ = 0;
  uint64_t chunk_index_ = 0;

  // Roots of the finished full subtrees, largest first.
  std::array<ChainingValue, kMaxDepth> subtrees_;
  size_t subtree_count_ = 0;
};

std::string blake3_hex(Bytes bytes);

}  // namespace dyn::wire

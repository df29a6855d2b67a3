#include "wire/blake3.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace dyn::wire {
namespace {

constexpr std::array<uint32_t, 8> kInitial = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                              0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

// Order of the message words in each of the seven rounds: the permutation of the specification, applied repeatedly.
using Schedule = std::array<std::array<uint8_t, 16>, 7>;
constexpr Schedule make_schedule() {
  constexpr std::array<uint8_t, 16> kPermutation = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};
  Schedule schedule{};
  for (uint8_t i = 0; i < 16; ++i) schedule[0][i] = i;
  for (size_t round = 1; round < 7; ++round) {
    for (size_t i = 0; i < 16; ++i) schedule[round][i] = schedule[round - 1][kPermutation[i]];
  }
  return schedule;
}
constexpr Schedule kSchedule = make_schedule();

enum Flag : uint32_t { kChunkStart = 1, kChunkEnd = 2, kParent = 4, kRoot = 8 };

inline uint32_t load_le(const std::byte* at) {
  uint32_t word = 0;
  std::memcpy(&word, at, sizeof(word));
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap32(word);
  return word;
}
inline void store_le(std::byte* at, uint32_t word) {
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap32(word);
  std::memcpy(at, &word, sizeof(word));
}

inline void mix(std::array<uint32_t, 16>& v, size_t a, size_t b, size_t c, size_t d, uint32_t x, uint32_t y) {
  v[a] = v[a] + v[b] + x;
  v[d] = std::rotr(v[d] ^ v[a], 16);
  v[c] = v[c] + v[d];
  v[b] = std::rotr(v[b] ^ v[c], 12);
  v[a] = v[a] + v[b] + y;
  v[d] = std::rotr(v[d] ^ v[a], 8);
  v[c] = v[c] + v[d];
  v[b] = std::rotr(v[b] ^ v[c], 7);
}

}  // namespace

Blake3::ChainingValue Blake3::compress(const Node& node) {
  std::array<uint32_t, 16> m;
  for (size_t i = 0; i < 16; ++i) m[i] = load_le(node.block.data() + 4 * i);
  std::array<uint32_t, 16> v;
  std::copy(node.input.begin(), node.input.end(), v.begin());
  std::copy_n(kInitial.begin(), 4, v.begin() + 8);
  v[12] = static_cast<uint32_t>(node.counter);
  v[13] = static_cast<uint32_t>(node.counter >> 32);
  v[14] = node.block_bytes;
  v[15] = node.flags;
  for (const auto& s : kSchedule) {
    mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
    mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
    mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
    mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
    mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
    mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
    mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
    mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
  }
  ChainingValue out;
  for (size_t i = 0; i < 8; ++i) out[i] = v[i] ^ v[i + 8];
  return out;
}

Blake3::Blake3() {
  start_chunk(0);
}

void Blake3::start_chunk(uint64_t index) {
  chunk_value_ = kInitial;
  block_bytes_ = 0;
  blocks_done_ = 0;
  chunk_index_ = index;
}

Blake3::Node Blake3::last_block() const {
  Node node{chunk_value_, {}, chunk_index_, static_cast<uint32_t>(block_bytes_), kChunkEnd};
  std::copy_n(block_.begin(), block_bytes_, node.block.begin());  // the rest stays zero
  if (blocks_done_ == 0) node.flags |= kChunkStart;
  return node;
}

Blake3::Node Blake3::parent(const ChainingValue& left, const ChainingValue& right) {
  Node node{kInitial, {}, 0, kBlockBytes, kParent};
  for (size_t i = 0; i < 8; ++i) {
    store_le(node.block.data() + 4 * i, left[i]);
    store_le(node.block.data() + 32 + 4 * i, right[i]);
  }
  return node;
}

// A finished chunk closes as many subtrees as its number has trailing zero bits.
void Blake3::push_chunk(ChainingValue value) {
  for (uint64_t chunks = chunk_index_ + 1; (chunks & 1) == 0; chunks >>= 1) {
    value = compress(parent(subtrees_[--subtree_count_], value));
  }
  subtrees_[subtree_count_++] = value;
}

void Blake3::update(Bytes bytes) {
  while (!bytes.empty()) {
    if (block_bytes_ ==
        kBlockBytes) {  // more input: the block was not the last of its chunk, or the chunk of the input
      if (blocks_done_ == kChunkBytes / kBlockBytes - 1) {
        push_chunk(compress(last_block()));
        start_chunk(chunk_index_ + 1);
      } else {
        chunk_value_ =
            compress({chunk_value_, block_, chunk_index_, kBlockBytes, blocks_done_ == 0 ? uint32_t{kChunkStart} : 0});
        ++blocks_done_;
        block_bytes_ = 0;
      }
    }
    const size_t count = std::min(kBlockBytes - block_bytes_, bytes.size());
    std::memcpy(block_.data() + block_bytes_, bytes.data(), count);
    block_bytes_ += count;
    bytes = bytes.subspan(count);
  }
}

Blake3::Digest Blake3::digest() const {
  Node node = last_block();
  for (size_t i = subtree_count_; i-- > 0;) node = parent(subtrees_[i], compress(node));
  node.flags |= kRoot;  // the counter of a root's first output block is 0, and so is it here: a lone chunk or a parent
  const ChainingValue words = compress(node);
  Digest digest;
  for (size_t i = 0; i < words.size(); ++i) store_le(digest.data() + 4 * i, words[i]);
  return digest;
}

std::string Blake3::hex() const {
  constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : digest()) {
    text += kHex[static_cast<uint8_t>(byte) >> 4];
    text += kHex[static_cast<uint8_t>(byte) & 15];
  }
  return text;
}

std::string blake3_hex(Bytes bytes) {
  Blake3 hash;
  hash.update(bytes);
  return hash.hex();
}

}  // namespace dyn::wire

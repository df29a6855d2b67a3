// Buffer: a growable byte queue for building and sending frames. Append at the end, consume from the front.
//
//   Buffer out;
//   out.append("abc");
//   std::byte* at = out.extend(4);   // 4 more bytes to write to; invalidates earlier pointers
//   store_be<uint32_t>(at, 7);
//   out.consume(3);
//
// Memory is kept when it runs empty, so a stream in steady state allocates nothing. Thread rules: one thread at a time.
#pragma once

#include <cstring>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace dyn {

class Buffer {
 public:
  [[nodiscard]] size_t size() const { return end_ - begin_; }
  [[nodiscard]] bool empty() const { return begin_ == end_; }
  [[nodiscard]] const std::byte* data() const { return storage_.data() + begin_; }
  [[nodiscard]] std::byte* data() { return storage_.data() + begin_; }
  [[nodiscard]] Bytes view() const { return {data(), size()}; }
  [[nodiscard]] size_t capacity() const { return storage_.size(); }

  std::byte* extend(size_t count) {
    reserve(count);
    std::byte* at = storage_.data() + end_;
    end_ += count;
    return at;
  }
  // Room for `count` more bytes without another allocation.
  void reserve(size_t count);
  void append(Bytes bytes) {
    if (!bytes.empty()) std::memcpy(extend(bytes.size()), bytes.data(), bytes.size());
  }
  void append(std::string_view text) { append(as_bytes(text)); }
  // Takes back the last `count` bytes.
  void shrink(size_t count) { end_ -= count; }
  void consume(size_t count) {
    begin_ += count;
    if (begin_ == end_) begin_ = end_ = 0;
  }
  void clear() { begin_ = end_ = 0; }
  // Gives memory above `keep` bytes back when empty: one huge answer must not pin its size for ever.
  void trim(size_t keep);

 private:
  std::vector<std::byte> storage_;
  size_t begin_ = 0;
  size_t end_ = 0;
};

}  // namespace dyn

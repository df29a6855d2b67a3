// MsgpackReader: a Reader (wire/reader.h) over a msgpack document.
//
//   MsgpackReader in(bytes);
//   in.read_object(...);
//   auto done = in.finish();
//
// Pulls straight from the input, which must outlive it; views it hands out point there. Every length is checked against
// the bytes left before it is used, so a count can never be larger than the document. Extensions can be skipped but not
// read. Thread rules: one thread at a time.
#pragma once

#include "wire/reader.h"

namespace dyn::wire {

class MsgpackReader final : public Reader {
 public:
  explicit MsgpackReader(Bytes in, unsigned max_depth = kMaxDepth) : Reader(max_depth), in_(in) {}

  [[nodiscard]] Kind peek() override;
  [[nodiscard]] Kind peek_first_element() override;
  bool skip() override;

 protected:
  bool take_null() override;
  bool take_bool(bool& out) override;
  bool take_number(Number& out) override;
  bool take_string(std::string_view& out) override;
  bool take_binary(Bytes& out) override;
  bool enter(size_t& count) override;
  bool next_member(std::string_view& key) override;
  bool next_element() override;
  void leave() override {}
  bool at_end() override { return position_ == in_.size(); }
  bool take_u32s(std::vector<uint32_t>& out, size_t count) override;

 private:
  // What a marker byte says about the value behind it.
  struct Head {
    Kind kind = Kind::kNothing;
    size_t size = 0;     // bytes of marker and length or number
    uint64_t count = 0;  // bytes of a string, binary or extension; elements; members
  };

  [[nodiscard]] size_t left() const { return in_.size() - position_; }
  [[nodiscard]] uint8_t byte(size_t offset) const { return static_cast<uint8_t>(in_[position_ + offset]); }
  template <class T>
  [[nodiscard]] T load(size_t offset) const {
    return load_be<T>(in_.data() + position_ + offset);
  }
  bool head(Head& out);
  bool take_bytes(Bytes& out);

  Bytes in_;
  size_t position_ = 0;
  std::array<size_t, kMaxDepth> remaining_{};  // elements or members left in each open container
};

}  // namespace dyn::wire

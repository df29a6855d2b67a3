// JsonReader: a Reader (wire/reader.h) over a JSON document.
//
//   JsonReader in(as_bytes(text));
//   in.read_object(...);
//   auto done = in.finish();
//
// The whole document is parsed and checked on construction (simdjson); an error shows at the first read. The text is
// not needed afterwards: views it hands out live as long as the reader. Numbers beyond 64 bits, like all malformed
// text, are errors of the whole document. Parsing takes memory of about 12 times the text, kept per thread up to a
// bound, so that documents of usual size allocate nothing. Thread rules: made, used and destroyed on one thread.
#pragma once

#include <memory>

#include "wire/padding.h"
#include "wire/reader.h"

namespace dyn::wire {

inline constexpr size_t kMaxJsonBytes = 256 * 1024 * 1024;

class JsonReader final : public Reader {
 public:
  explicit JsonReader(Bytes text, Padding padding = Padding::kNone, unsigned max_depth = kMaxDepth);
  ~JsonReader() override;

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
  void leave() override;
  bool at_end() override;
  bool take_u32s(std::vector<uint32_t>& out, size_t count) override;

 private:
  struct State;
  static std::unique_ptr<State>& spare();

  std::unique_ptr<State> state_;
};

}  // namespace dyn::wire

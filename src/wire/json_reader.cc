#include "wire/json_reader.h"

#include <simdjson.h>

namespace dyn::wire {

static_assert(kReadPadding >= simdjson::SIMDJSON_PADDING);

namespace dom = simdjson::dom;

namespace {

// Above this a parser's memory is given back after the document.
constexpr size_t kMaxSpareBytes = 1024 * 1024;

// simdjson counts sizes up to here and then stops.
constexpr size_t kCountSaturated = 0xFFFFFF;

Kind kind_of(const dom::element& element) {
  switch (element.type()) {
    case dom::element_type::ARRAY:
      return Kind::kArray;
    case dom::element_type::OBJECT:
      return Kind::kObject;
    case dom::element_type::INT64:
    case dom::element_type::UINT64:
    case dom::element_type::DOUBLE:
      return Kind::kNumber;
    case dom::element_type::STRING:
      return Kind::kString;
    case dom::element_type::BOOL:
      return Kind::kBool;
    case dom::element_type::NULL_VALUE:
      return Kind::kNull;
  }
  return Kind::kNothing;
}

}  // namespace

struct JsonReader::State {
  struct Frame {
    bool is_object = false;
    dom::array::iterator element;
    dom::array::iterator element_end;
    dom::object::iterator member;
    dom::object::iterator member_end;
  };

  dom::parser parser;
  dom::element value;      // comes next, if has_value
  bool has_value = false;  // not yet consumed
  std::vector<Frame> frames;

  // The value that comes next, which from now on counts as consumed.
  dom::element take() {
    has_value = false;
    return value;
  }
};

// One parser a thread waits for the next document. A reader inside another reader makes its own.
std::unique_ptr<JsonReader::State>& JsonReader::spare() {
  thread_local std::unique_ptr<State> spare;
  return spare;
}

JsonReader::JsonReader(Bytes text, Padding padding, unsigned max_depth)
    : Reader(max_depth), state_(std::move(spare())) {
  if (!state_) state_ = std::make_unique<State>();
  state_->has_value = false;
  state_->frames.clear();
  if (text.size() > kMaxJsonBytes) {
    fail("more than " + std::to_string(kMaxJsonBytes) + " bytes of JSON");
    return;
  }
  if (text.empty()) {  // perhaps without an address
    fail("malformed JSON: no text");
    return;
  }
  auto& parser = state_->parser;
  simdjson::error_code error = simdjson::SUCCESS;
  // simdjson's depth counts one more than the containers.
  const size_t depth = this->max_depth() + 1;
  if (parser.capacity() == 0 || parser.max_depth() != depth) {
    error = parser.allocate(std::max(text.size(), size_t{4096}), depth);
  }
  if (!error) {
    error = parser.parse(reinterpret_cast<const uint8_t*>(text.data()), text.size(), padding == Padding::kNone)
                .get(state_->value);
  }
  if (error == simdjson::DEPTH_ERROR) {
    fail("more than " + std::to_string(this->max_depth()) + " levels of nesting");
  } else if (error) {
    fail(std::string("malformed JSON: ") + simdjson::error_message(error));
  } else {
    state_->has_value = true;
  }
}

JsonReader::~JsonReader() {
  if (state_->parser.capacity() <= kMaxSpareBytes) spare() = std::move(state_);
}

Kind JsonReader::peek() {
  if (!ok()) return Kind::kNothing;
  if (!state_->has_value) {
    fail("no value left");
    return Kind::kNothing;
  }
  return kind_of(state_->value);
}

Kind JsonReader::peek_first_element() {
  if (peek() != Kind::kArray) return Kind::kNothing;
  const dom::array array = state_->value.get_array().value_unsafe();
  return array.begin() == array.end() ? Kind::kNothing : kind_of(*array.begin());
}

bool JsonReader::skip() {
  if (peek() == Kind::kNothing) return false;
  state_->has_value = false;
  return true;
}

bool JsonReader::take_null() {
  state_->has_value = false;
  return true;
}

bool JsonReader::take_bool(bool& out) {
  out = state_->take().get_bool().value_unsafe();
  return true;
}

bool JsonReader::take_number(Number& out) {
  const dom::element element = state_->take();
  int64_t signed_value = 0;
  if (element.type() == dom::element_type::DOUBLE) {
    out.form = Number::Form::kFloat;
    out.float_value = element.get_double().value_unsafe();
  } else if (element.get_uint64().get(out.unsigned_value) == simdjson::SUCCESS) {
    out.form = Number::Form::kUnsigned;
  } else if (element.get_int64().get(signed_value) == simdjson::SUCCESS) {
    out.form = Number::Form::kNegative;
    out.negative_value = signed_value;
  }
  return true;
}

bool JsonReader::take_string(std::string_view& out) {
  out = state_->take().get_string().value_unsafe();
  return true;
}

bool JsonReader::take_binary(Bytes&) {
  return false;
}  // JSON has none: never asked for

bool JsonReader::enter(size_t& count) {
  const dom::element element = state_->take();
  State::Frame& frame = state_->frames.emplace_back();
  if (element.type() == dom::element_type::OBJECT) {
    const dom::object object = element.get_object().value_unsafe();
    frame.is_object = true;
    frame.member = object.begin();
    frame.member_end = object.end();
    count = object.size();
    if (count == kCountSaturated) count = static_cast<size_t>(std::distance(frame.member, frame.member_end));
  } else {
    const dom::array array = element.get_array().value_unsafe();
    frame.element = array.begin();
    frame.element_end = array.end();
    count = array.size();
    if (count == kCountSaturated) count = static_cast<size_t>(std::distance(frame.element, frame.element_end));
  }
  return true;
}

bool JsonReader::next_member(std::string_view& key) {
  State::Frame& frame = state_->frames.back();
  if (!ok() || frame.member == frame.member_end) return false;
  const dom::key_value_pair member = *frame.member;
  ++frame.member;
  key = member.key;
  state_->value = member.value;
  state_->has_value = true;
  return true;
}

bool JsonReader::next_element() {
  State::Frame& frame = state_->frames.back();
  if (!ok() || frame.element == frame.element_end) return false;
  state_->value = *frame.element;
  ++frame.element;
  state_->has_value = true;
  return true;
}

void JsonReader::leave() {
  state_->frames.pop_back();
}

bool JsonReader::at_end() {
  return state_->frames.empty() && !state_->has_value;
}

bool JsonReader::take_u32s(std::vector<uint32_t>& out, size_t) {
  State::Frame& frame = state_->frames.back();
  for (auto at = frame.element; at != frame.element_end; ++at) {
    uint64_t value = 0;
    if ((*at).get_uint64().get(value) != simdjson::SUCCESS || value > UINT32_MAX) return false;
    out.push_back(static_cast<uint32_t>(value));
  }
  frame.element = frame.element_end;
  return true;
}

}  // namespace dyn::wire

#include "llm/output.h"

#include <bit>
#include <cassert>
#include <charconv>
#include <cmath>
#include <cstring>
#include <string>

#include "wire/json_reader.h"
#include "wire/json_writer.h"

namespace dyn::llm {
namespace {

// The two emitters below have the same functions and write to memory that is known to be large enough (max_bytes()), so
// that encode_members() exists once and costs no more than the copies it makes.

// The longest text of a float is 15 characters, "-1.17549435e-38", of a u32 10, of a u64 20.
constexpr size_t kMaxFloatChars = 16;
constexpr size_t kMaxU32Chars = 10;

class JsonEmitter {
 public:
  explicit JsonEmitter(std::byte* at) : at_(reinterpret_cast<char*>(at)) {}

  void object(size_t) { *at_++ = '{'; }
  void end_object() { *at_++ = '}'; }
  void array(size_t) { *at_++ = '['; }
  void end_array() { *at_++ = ']'; }
  void element() { separate('['); }
  template <size_t N>
  void key(const char (&name)[N]) {
    separate('{');
    *at_++ = '"';
    put(name);
    *at_++ = '"';
    *at_++ = ':';
  }
  void key(uint32_t name) {
    separate('{');
    *at_++ = '"';
    number(name);
    *at_++ = '"';
    *at_++ = ':';
  }
  void number(uint32_t value) { at_ = std::to_chars(at_, at_ + kMaxU32Chars, value).ptr; }
  void number(float value) { at_ = std::to_chars(at_, at_ + kMaxFloatChars, value).ptr; }
  void word(std::string_view plain) {  // nothing in it to escape
    *at_++ = '"';
    std::memcpy(at_, plain.data(), plain.size());
    at_ += plain.size();
    *at_++ = '"';
  }
  void null() { put("null"); }
  void flag(bool value) {
    if (value) {
      put("true");
    } else {
      put("false");
    }
  }

  [[nodiscard]] std::byte* end() const { return reinterpret_cast<std::byte*>(at_); }

 private:
  template <size_t N>
  void put(const char (&text)[N]) {
    std::memcpy(at_, text, N - 1);
    at_ += N - 1;
  }
  void separate(char opening) {
    if (at_[-1] != opening) *at_++ = ',';
  }

  char* at_;
};

class MsgpackEmitter {
 public:
  explicit MsgpackEmitter(std::byte* at) : at_(at) {}

  void object(size_t members) {
    if (members < 16) {
      put_byte(static_cast<uint8_t>(0x80 | members));
    } else {
      put_marked(0xDE, static_cast<uint16_t>(members));  // never more than alternatives of a token
    }
  }
  void end_object() {}
  void array(size_t elements) {
    if (elements < 16) {
      put_byte(static_cast<uint8_t>(0x90 | elements));
    } else if (elements <= 0xFFFF) {
      put_marked(0xDC, static_cast<uint16_t>(elements));
    } else {
      put_marked(0xDD, static_cast<uint32_t>(elements));
    }
  }
  void end_array() {}
  void element() {}
  template <size_t N>
  void key(const char (&name)[N]) {
    static_assert(N - 1 < 32);
    put_byte(static_cast<uint8_t>(0xA0 | (N - 1)));
    std::memcpy(at_, name, N - 1);
    at_ += N - 1;
  }
  void key(uint32_t name) {
    char text[kMaxU32Chars];
    word({text, std::to_chars(text, text + kMaxU32Chars, name).ptr});
  }
  void number(uint32_t value) {
    if (value < 0x80) {
      put_byte(static_cast<uint8_t>(value));
    } else if (value <= 0xFF) {
      put_marked(0xCC, static_cast<uint8_t>(value));
    } else if (value <= 0xFFFF) {
      put_marked(0xCD, static_cast<uint16_t>(value));
    } else {
      put_marked(0xCE, value);
    }
  }
  void number(float value) { put_marked(0xCB, std::bit_cast<uint64_t>(static_cast<double>(value))); }
  void word(std::string_view plain) {  // shorter than 32
    put_byte(static_cast<uint8_t>(0xA0 | plain.size()));
    std::memcpy(at_, plain.data(), plain.size());
    at_ += plain.size();
  }
  void null() { put_byte(0xC0); }
  void flag(bool value) { put_byte(value ? 0xC3 : 0xC2); }

  [[nodiscard]] std::byte* end() const { return at_; }

 private:
  void put_byte(uint8_t byte) { *at_++ = static_cast<std::byte>(byte); }
  template <class T>
  void put_marked(uint8_t marker, T value) {
    put_byte(marker);
    store_be(at_, value);
    at_ += sizeof(T);
  }

  std::byte* at_;
};

float clamped(float logprob) {
  return std::isfinite(logprob) && logprob > kLowestLogprob ? logprob : kLowestLogprob;
}

// Upper bound of a chunk in either codec: all fixed text (410 bytes with every member), and the numbers.
size_t max_bytes(const OutputChunk& chunk) {
  constexpr size_t kFixed = 640;
  constexpr size_t kToken = kMaxU32Chars + 1;
  constexpr size_t kLogprob = kMaxFloatChars + 1 + 3;  // and the list of alternatives: ",[]"
  constexpr size_t kTop =
      sizeof(R"(,{"rank":,"token_id":,"token":null,"logprob":})") + 2 * kMaxU32Chars + kMaxFloatChars;
  constexpr size_t kPrompt = sizeof(R"(,"":{"logprob":,"rank":},null)") + 2 * kMaxU32Chars + kMaxFloatChars;
  return kFixed + chunk.prompt_logprobs.size() * kPrompt + chunk.tokens.size() * kToken +
         chunk.logprobs.size() * kLogprob + chunk.top.size() * kTop;
}

template <class Emitter>
void encode_top_logprobs(Emitter& emit, const OutputChunk& chunk) {
  const size_t width = chunk.top_width;
  emit.array(chunk.tokens.size());
  for (size_t token = 0; token < chunk.tokens.size(); ++token) {
    emit.element();
    emit.array(width);
    for (const TopLogprob& top : chunk.top.subspan(token * width, width)) {
      emit.element();
      emit.object(4);
      emit.key("rank");
      emit.number(top.rank);
      emit.key("token_id");
      emit.number(top.id);
      emit.key("token");  // the frontend's to fill in
      emit.null();
      emit.key("logprob");
      emit.number(clamped(top.logprob));
      emit.end_object();
    }
    emit.end_array();
  }
  emit.end_array();
}

template <class Emitter>
void encode_usage(Emitter& emit, const Usage& usage) {
  emit.object(4);
  emit.key("prompt_tokens");
  emit.number(usage.prompt_tokens);
  emit.key("completion_tokens");
  emit.number(usage.completion_tokens);
  emit.key("total_tokens");
  emit.number(usage.prompt_tokens + usage.completion_tokens);
  emit.key("prompt_tokens_details");
  if (usage.cached_tokens) {
    emit.object(1);
    emit.key("cached_tokens");
    emit.number(*usage.cached_tokens);
    emit.end_object();
  } else {
    emit.null();
  }
  emit.end_object();
}

template <class Emitter>
void encode_prompt_logprob(Emitter& emit, const TopLogprob& entry) {
  emit.key(entry.id);
  emit.object(entry.rank > 0 ? 2 : 1);
  emit.key("logprob");
  emit.number(clamped(entry.logprob));
  if (entry.rank > 0) {
    emit.key("rank");
    emit.number(entry.rank);
  }
  emit.end_object();
}

// A list with null for the first token, and for each other a map from token ids to what is known of them.
template <class Emitter>
void encode_prompt_logprobs(Emitter& emit, const OutputChunk& chunk) {
  const size_t width = chunk.prompt_top_width;
  const size_t tokens = chunk.prompt_logprobs.size() / width;
  emit.array(tokens + 1);
  emit.element();
  emit.null();
  for (size_t token = 0; token < tokens; ++token) {
    const auto entries = chunk.prompt_logprobs.subspan(token * width, width);
    TopLogprob own = entries.front();
    size_t others = 0;
    for (const TopLogprob& entry : entries.subspan(1)) {
      if (entry.rank == 0) continue;
      if (entry.id == own.id) own.rank = entry.rank;
      others += entry.id == own.id ? 0 : 1;
    }
    emit.element();
    emit.object(1 + others);
    encode_prompt_logprob(emit, own);
    for (const TopLogprob& entry : entries.subspan(1)) {
      if (entry.rank > 0 && entry.id != own.id) encode_prompt_logprob(emit, entry);
    }
    emit.end_object();
  }
  emit.end_array();
}

template <class Emitter>
void encode_members(Emitter& emit, const OutputChunk& chunk) {
  const bool has_logprobs = !chunk.logprobs.empty();
  const std::string_view finish = to_string(chunk.finish);
  const size_t engine_data = (chunk.kv_cache_hit ? 1U : 0U) + (chunk.prompt_logprobs.empty() ? 0U : 1U);
  const size_t members = size_t{1} + (has_logprobs ? 2 : 0) + (finish.empty() ? 0 : 1) + (chunk.stop_token ? 1 : 0) +
                         (chunk.index ? 1 : 0) + (chunk.usage ? 1 : 0) + (engine_data > 0 ? 1 : 0);
  emit.object(2);
  emit.key("data");
  emit.object(1);
  emit.key("data");
  emit.object(members);

  emit.key("token_ids");
  emit.array(chunk.tokens.size());
  for (const TokenId token : chunk.tokens) {
    emit.element();
    emit.number(token);
  }
  emit.end_array();
  if (has_logprobs) {
    emit.key("log_probs");
    emit.array(chunk.logprobs.size());
    for (const float logprob : chunk.logprobs) {
      emit.element();
      emit.number(clamped(logprob));
    }
    emit.end_array();
    emit.key("top_logprobs");
    encode_top_logprobs(emit, chunk);
  }
  if (!finish.empty()) {
    emit.key("finish_reason");
    emit.word(finish);
  }
  if (chunk.stop_token) {
    emit.key("stop_reason");
    emit.number(*chunk.stop_token);
  }
  if (chunk.index) {
    emit.key("index");
    emit.number(*chunk.index);
  }
  if (chunk.usage) {
    emit.key("completion_usage");
    encode_usage(emit, *chunk.usage);
  }
  if (engine_data > 0) {
    emit.key("engine_data");
    emit.object(engine_data);
    if (chunk.kv_cache_hit) {
      emit.key("kv_cache_hit");
      emit.object(2);
      emit.key("prompt_tokens");
      emit.number(chunk.kv_cache_hit->prompt_tokens);
      emit.key("reused_tokens");
      emit.number(chunk.kv_cache_hit->reused_tokens);
      emit.end_object();
    }
    if (!chunk.prompt_logprobs.empty()) {
      emit.key("prompt_logprobs");
      encode_prompt_logprobs(emit, chunk);
    }
    emit.end_object();
  }

  emit.end_object();
  emit.end_object();
  emit.key("complete_final");
  emit.flag(false);
  emit.end_object();
}

// The usual chunk is nothing but tokens: two constants with the numbers between them.
bool is_plain(const OutputChunk& chunk) {
  return chunk.logprobs.empty() && chunk.finish == FinishReason::kNone && !chunk.stop_token && !chunk.index &&
         !chunk.usage && !chunk.kv_cache_hit && chunk.prompt_logprobs.empty();
}

void encode_plain_json(Buffer& out, std::span<const TokenId> tokens) {
  constexpr std::string_view kHead = R"({"data":{"data":{"token_ids":[)";
  constexpr std::string_view kTail = R"(]}},"complete_final":false})";
  const size_t room = kHead.size() + tokens.size() * (kMaxU32Chars + 1) + kTail.size();
  char* const begin = reinterpret_cast<char*>(out.extend(room));
  std::memcpy(begin, kHead.data(), kHead.size());
  char* at = begin + kHead.size();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) *at++ = ',';
    at = std::to_chars(at, at + kMaxU32Chars, tokens[i]).ptr;
  }
  std::memcpy(at, kTail.data(), kTail.size());
  out.shrink(room - static_cast<size_t>(at + kTail.size() - begin));
}

template <class Emitter>
void encode_chunk_as(Buffer& out, const OutputChunk& chunk) {
  const size_t room = max_bytes(chunk);
  std::byte* const begin = out.extend(room);
  Emitter emit(begin);
  encode_members(emit, chunk);
  const auto used = static_cast<size_t>(emit.end() - begin);
  assert(used <= room);
  out.shrink(room - used);
}

std::string error_text(const ErrorItem& item) {
  if (item.http_code == 0) return std::string(item.message);
  Buffer text;
  wire::JsonWriter json(text);
  json.begin_object();
  json.member("message", item.message);
  json.member("code", item.http_code);
  json.end_object();
  return std::string(as_text(text.view()));
}

void encode_error_json(Buffer& out, const ErrorItem& item) {
  const std::string text = error_text(item);
  wire::JsonWriter json(out);
  json.begin_object();
  json.key("data");
  json.begin_object();
  json.member("event", "error");
  json.key("comment");  // read by 0.8 and 0.9
  json.begin_array();
  json.value(text);
  json.end_array();
  json.key("error");  // read since 1.0
  json.begin_object();
  json.key("error_type");
  if (item.type == ErrorType::kEngineShutdown) {
    json.begin_object();
    json.member("Backend", to_string(item.type));
    json.end_object();
  } else {
    json.value(to_string(item.type));
  }
  json.member("message", text);
  json.end_object();
  json.end_object();
  json.member("complete_final", false);
  json.end_object();
}

}  // namespace

void encode_chunk(Buffer& out, Codec codec, const OutputChunk& chunk) {
  assert(chunk.logprobs.empty() || chunk.logprobs.size() == chunk.tokens.size());
  assert(chunk.logprobs.empty() || chunk.top.size() == chunk.tokens.size() * chunk.top_width);
  if (codec == Codec::kMsgpack) {
    encode_chunk_as<MsgpackEmitter>(out, chunk);
  } else if (is_plain(chunk)) {
    encode_plain_json(out, chunk.tokens);
  } else {
    encode_chunk_as<JsonEmitter>(out, chunk);
  }
}

void encode_complete_final(Buffer& out, Codec codec) {
  out.append(codec == Codec::kMsgpack ? std::string_view("\x81\xAE"
                                                         "complete_final\xC3")
                                      : std::string_view(R"({"complete_final":true})"));
}

std::string_view to_string(ErrorType type) {
  switch (type) {
    case ErrorType::kUnknown:
      return "Unknown";
    case ErrorType::kInvalidArgument:
      return "InvalidArgument";
    case ErrorType::kCannotConnect:
      return "CannotConnect";
    case ErrorType::kDisconnected:
      return "Disconnected";
    case ErrorType::kConnectionTimeout:
      return "ConnectionTimeout";
    case ErrorType::kEngineShutdown:
      return "EngineShutdown";
  }
  return "Unknown";
}

void encode_error(Buffer& out, Codec codec, const ErrorItem& item) {
  if (codec == Codec::kJson) {
    encode_error_json(out, item);
    return;
  }
  Buffer json;
  encode_error_json(json, item);
  wire::JsonReader(json.view()).append_msgpack(out);
}

ErrorItem to_error_item(const Error& error) {
  switch (error.code) {
    case Code::kInvalidArgument:
    case Code::kUnsupported:
      return {ErrorType::kInvalidArgument, error.message, 400};
    case Code::kNotFound:
      return {ErrorType::kInvalidArgument, error.message, 404};
    case Code::kOverloaded:
      // Not as something to try elsewhere: a frontend that is told to leaves this worker alone for seconds.
      return {ErrorType::kUnknown, error.message, 503};
    case Code::kUnavailable:
    case Code::kEngineDead:
      return {ErrorType::kEngineShutdown, error.message, 0};
    case Code::kCancelled:
    case Code::kAlreadyExists:
    case Code::kDeadline:
    case Code::kInternal:
      break;
  }
  return {ErrorType::kUnknown, error.message, 0};
}

}  // namespace dyn::llm

#include "llm/request.h"

#include <bit>
#include <cstring>

#include "wire/json_reader.h"
#include "wire/msgpack_reader.h"

namespace dyn::llm {
namespace {

using wire::Kind;
using wire::Reader;

// Reads one body. Null counts as absent for every member, so the members of nested objects are std::optional or read by
// read_unless_null().
class RequestDecoder {
 public:
  RequestDecoder(Reader& in, const RequestLimits& limits) : in_(in), limits_(limits) {}

  Result<Request> decode() {
    in_.read_object([&](std::string_view key) { return read_member(key); });
    if (auto done = in_.finish(); !done) return done.error();
    if (!has_token_ids_) return invalid_argument("token_ids: missing");
    merge_top_level();
    return std::move(request_);
  }

 private:
  bool read_member(std::string_view key) {
    Request& r = request_;
    if (key == "token_ids") return read_token_ids();
    if (key == "model") return in_.read_unless_null(r.model);
    if (key == "stop_conditions") return read_nested(&RequestDecoder::read_stop);
    if (key == "sampling_options") return read_nested(&RequestDecoder::read_sampling);
    if (key == "output_options") return read_nested(&RequestDecoder::read_output);
    if (key == "routing") return read_nested(&RequestDecoder::read_routing);
    if (key == "extra_args") return read_extra_args();
    if (key == "eos_token_ids") return read_ids(r.eos_token_ids);
    if (key == "annotations") return in_.read_unless_null(r.annotations);
    if (key == "_HEALTH_CHECK") return in_.read_unless_null(r.is_health_check);
    if (key == "require_reasoning") return in_.read_unless_null(r.require_reasoning);
    if (key == "prompt_embeds") return read_presence(r.has_prompt_embeds);
    if (key == "multi_modal_data") return read_presence(r.has_multi_modal_data);
    if (key == "prefill_result") return read_presence(r.has_prefill_result);
    if (key == "bootstrap_info") return read_presence(r.has_bootstrap_info);
    if (key == "encoder_result") return read_presence(r.has_encoder_result);
    if (key == "max_tokens") return in_.read(top_level_.max_tokens);
    if (key == "min_tokens") return in_.read(top_level_.min_tokens);
    if (key == "ignore_eos") return in_.read(top_level_.ignore_eos);
    if (key == "temperature") return in_.read(top_level_.temperature);
    return in_.skip();
  }

  bool read_nested(bool (RequestDecoder::*member)(std::string_view)) {
    if (in_.peek() == Kind::kNull) return in_.skip();
    return in_.read_object([&](std::string_view key) { return (this->*member)(key); });
  }

  bool read_stop(std::string_view key) {
    StopConditions& stop = request_.stop;
    if (key == "max_tokens") return in_.read(stop.max_tokens);
    if (key == "min_tokens") return in_.read(stop.min_tokens);
    if (key == "stop") return in_.read_unless_null(stop.stop);
    if (key == "stop_token_ids") return read_ids(stop.stop_token_ids);
    if (key == "stop_token_ids_visible") return read_ids(stop.stop_token_ids_visible);
    if (key == "stop_token_ids_hidden") return read_ids(stop.stop_token_ids_hidden);
    if (key == "ignore_eos") return in_.read(ignore_eos_);
    if (key == "max_thinking_tokens") return in_.read(stop.max_thinking_tokens);
    return in_.skip();
  }

  bool read_sampling(std::string_view key) {
    SamplingOptions& s = request_.sampling;
    if (key == "n") return in_.read(s.n);
    if (key == "best_of") return in_.read(s.best_of);
    if (key == "presence_penalty") return in_.read(s.presence_penalty);
    if (key == "frequency_penalty") return in_.read(s.frequency_penalty);
    if (key == "repetition_penalty") return in_.read(s.repetition_penalty);
    if (key == "temperature") return in_.read(s.temperature);
    if (key == "top_p") return in_.read(s.top_p);
    if (key == "top_k") return in_.read(s.top_k);
    if (key == "min_p") return in_.read(s.min_p);
    if (key == "use_beam_search") return in_.read(s.use_beam_search);
    if (key == "length_penalty") return in_.read(s.length_penalty);
    if (key == "seed") return in_.read(s.seed);
    if (key == "include_stop_str_in_output") return in_.read(s.include_stop_str_in_output);
    if (key == "guided_decoding") return read_guided_decoding();
    return in_.skip();
  }

  bool read_output(std::string_view key) {
    OutputOptions& output = request_.output;
    if (key == "logprobs") return in_.read(output.logprobs);
    if (key == "prompt_logprobs") return in_.read(output.prompt_logprobs);
    if (key == "skip_special_tokens") return in_.read(output.skip_special_tokens);
    if (key == "formatted_prompt") return in_.read(output.formatted_prompt);
    if (key == "return_tokens_as_token_ids") {
      request_.keeps_choices_apart = true;
      return in_.read(output.return_tokens_as_token_ids);
    }
    if (key == "no_stop_trim") return in_.read_unless_null(output.no_stop_trim);
    return in_.skip();
  }

  bool read_routing(std::string_view key) {
    Routing& routing = request_.routing;
    if (key == "dp_rank") return in_.read(routing.dp_rank);
    if (key == "priority") return in_.read(routing.priority);
    if (key == "lora_name") return in_.read_unless_null(routing.lora_name);
    if (key == "cache_salt") return in_.read_unless_null(routing.cache_salt);
    return in_.skip();
  }

  // Free-form: only the salt is of interest, and nothing else in it can make a request invalid.
  bool read_extra_args() {
    if (in_.peek() != Kind::kObject) return in_.skip();
    return in_.read_object([&](std::string_view key) {
      if (key != "nvext" || in_.peek() != Kind::kObject) return in_.skip();
      return in_.read_object([&](std::string_view name) {
        return name == "cache_salt" ? in_.read_unless_null(nvext_cache_salt_) : in_.skip();
      });
    });
  }

  bool read_guided_decoding() {
    std::optional<GuidedDecoding>& guided = request_.sampling.guided_decoding;
    guided.reset();
    if (in_.peek() == Kind::kNull) return in_.skip();
    GuidedDecoding read;
    const bool done = in_.read_object([&](std::string_view key) {
      if (in_.peek() == Kind::kNull) return in_.skip();
      if (key == "backend") return in_.read(read.backend);
      if (key == "whitespace_pattern") return in_.read(read.whitespace_pattern);
      const bool is_text = key == "regex" || key == "grammar";
      if (!is_text && key != "json" && key != "choice" && key != "structural_tag") return in_.skip();
      if (!read.kind.empty() && read.kind != key) return in_.fail("a second constraint besides " + read.kind);
      read.kind = key;
      if (key == "choice" && in_.peek() != Kind::kArray) return in_.fail("expected a list of strings");
      // A schema may also come as text that holds the JSON.
      if (is_text || in_.peek() == Kind::kString) return in_.read(read.text);
      Buffer json;
      if (!in_.append_json(json)) return false;
      read.text = as_text(json.view());
      return true;
    });
    // Frontends up to 1.5 send objects that hold nothing to enforce.
    if (done && !read.kind.empty()) guided = std::move(read);
    return done;
  }

  bool read_ids(std::vector<TokenId>& ids) {
    if (in_.peek() == Kind::kNull) return in_.skip();
    return in_.read_u32s(ids, wire::kMaxListItems);
  }

  // A list, a list of lists (embeddings), or packed (1.6, msgpack).
  bool read_token_ids() {
    const Kind kind = in_.peek();
    if (kind == Kind::kNull) return in_.skip();
    has_token_ids_ = true;
    request_.token_ids.clear();
    request_.token_id_batches.clear();
    if (kind == Kind::kBinary) return read_packed_token_ids();
    if (in_.peek_first_element() != Kind::kArray) return in_.read_u32s(request_.token_ids, limits_.max_tokens);

    size_t left = limits_.max_tokens;
    return in_.read_array([&](size_t i) {
      if (i == wire::kMaxListItems) return in_.fail("too many lists of token ids");
      std::vector<TokenId>& batch = request_.token_id_batches.emplace_back();
      if (!in_.read_u32s(batch, left)) return false;
      left -= batch.size();
      return true;
    });
  }

  // Little-endian signed 32-bit integers without a gap.
  bool read_packed_token_ids() {
    Bytes packed;
    if (!in_.read(packed)) return false;
    if (packed.size() % sizeof(int32_t) != 0) {
      return in_.fail(std::to_string(packed.size()) + " bytes are no list of 32-bit integers");
    }
    const size_t count = packed.size() / sizeof(int32_t);
    if (count > limits_.max_tokens) {
      return in_.fail("the list has more than " + std::to_string(limits_.max_tokens) + " elements");
    }
    std::vector<TokenId>& ids = request_.token_ids;
    ids.resize(count);
    if (count > 0) std::memcpy(ids.data(), packed.data(), packed.size());
    if constexpr (std::endian::native == std::endian::big) {
      for (TokenId& id : ids) id = __builtin_bswap32(id);
    }
    TokenId all = 0;
    for (const TokenId id : ids) all |= id;
    if (all > INT32_MAX) return in_.fail("a token id is negative");
    return true;
  }

  bool read_presence(bool& present) {
    present = false;
    if (in_.peek() == Kind::kNull) return in_.skip();
    if (in_.peek() != Kind::kObject) {
      present = true;
      return in_.skip();
    }
    return in_.read_object([&](std::string_view) {  // an empty object says nothing
      present = true;
      return in_.skip();
    });
  }

  // What 1.6 also takes at the top: a nested value always wins.
  void merge_top_level() {
    StopConditions& stop = request_.stop;
    if (!stop.max_tokens) stop.max_tokens = top_level_.max_tokens;
    if (!stop.min_tokens) stop.min_tokens = top_level_.min_tokens;
    if (!ignore_eos_) ignore_eos_ = top_level_.ignore_eos;
    stop.ignore_eos = ignore_eos_.value_or(false);
    if (!request_.sampling.temperature) request_.sampling.temperature = top_level_.temperature;
    if (request_.routing.cache_salt.empty()) request_.routing.cache_salt = std::move(nvext_cache_salt_);
  }

  struct TopLevel {
    std::optional<uint32_t> max_tokens;
    std::optional<uint32_t> min_tokens;
    std::optional<bool> ignore_eos;
    std::optional<double> temperature;
  };

  Reader& in_;
  const RequestLimits& limits_;
  Request request_;
  bool has_token_ids_ = false;
  std::optional<bool> ignore_eos_;
  std::string nvext_cache_salt_;
  TopLevel top_level_;
};

}  // namespace

Result<Request> decode_request(Bytes body, Codec codec, const RequestLimits& limits, wire::Padding padding) {
  if (codec == Codec::kMsgpack) {
    wire::MsgpackReader in(body, limits.max_depth);
    return RequestDecoder(in, limits).decode();
  }
  wire::JsonReader in(body, padding, limits.max_depth);
  return RequestDecoder(in, limits).decode();
}

}  // namespace dyn::llm

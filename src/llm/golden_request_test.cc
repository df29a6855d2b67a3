// Every request body that official frontends made of some 200 client requests, in both codecs, against what a worker
// must find in it (tests/golden/README.md).
#include <gtest/gtest.h>

#include <numeric>

#include "llm/request.h"
#include "llm/test_support.h"
#include "wire/control_message.h"
#include "wire/json_writer.h"
#include "wire/two_part.h"

namespace dyn::llm {
namespace {

// A request as the JSON object that the `expect` column holds: only what is set, in the column's order.
class Summary {
 public:
  explicit Summary(const Request& r) {
    json_.begin_object();
    batches(r);
    json_.member("model", r.model);
    optional("max_tokens", r.stop.max_tokens);
    optional("min_tokens", r.stop.min_tokens);
    optional("max_thinking_tokens", r.stop.max_thinking_tokens);
    list("stop", r.stop.stop);
    list("stop_token_ids", r.stop.stop_token_ids);
    list("stop_token_ids_visible", r.stop.stop_token_ids_visible);
    list("stop_token_ids_hidden", r.stop.stop_token_ids_hidden);
    flag("ignore_eos", r.stop.ignore_eos);
    sampling(r.sampling);
    optional("logprobs", r.output.logprobs);
    optional("prompt_logprobs", r.output.prompt_logprobs);
    optional("skip_special_tokens", r.output.skip_special_tokens);
    optional("return_tokens_as_token_ids", r.output.return_tokens_as_token_ids);
    list("eos_token_ids", r.eos_token_ids);
    list("annotations", r.annotations);
    optional("dp_rank", r.routing.dp_rank);
    optional("priority", r.routing.priority);
    if (!r.routing.lora_name.empty()) json_.member("lora_name", r.routing.lora_name);
    if (!r.routing.cache_salt.empty()) json_.member("cache_salt", r.routing.cache_salt);
    presence(r);
    flag("require_reasoning", r.require_reasoning);
    json_.end_object();
  }
  [[nodiscard]] std::string text() const { return std::string(as_text(out_.view())); }

 private:
  void batches(const Request& r) {
    std::vector<TokenId> flat = r.token_ids;
    if (!r.token_id_batches.empty()) {
      std::vector<size_t> sizes;
      for (const auto& batch : r.token_id_batches) {
        sizes.push_back(batch.size());
        flat.insert(flat.end(), batch.begin(), batch.end());
      }
      list("batches", sizes);
    }
    json_.member("tokens", flat.size());
    json_.member("token_sum", std::accumulate(flat.begin(), flat.end(), uint64_t{0}));
  }
  void sampling(const SamplingOptions& s) {
    optional("n", s.n);
    optional("best_of", s.best_of);
    optional("presence_penalty", s.presence_penalty);
    optional("frequency_penalty", s.frequency_penalty);
    optional("repetition_penalty", s.repetition_penalty);
    optional("temperature", s.temperature);
    optional("top_p", s.top_p);
    optional("top_k", s.top_k);
    optional("min_p", s.min_p);
    optional("seed", s.seed);
    optional("use_beam_search", s.use_beam_search);
    optional("length_penalty", s.length_penalty);
    optional("include_stop_str_in_output", s.include_stop_str_in_output);
    if (!s.guided_decoding) return;
    json_.member("guided_kind", s.guided_decoding->kind);
    json_.key("guided");
    if (s.guided_decoding->kind == "regex" || s.guided_decoding->kind == "grammar") {
      json_.value(s.guided_decoding->text);
    } else {
      json_.raw(s.guided_decoding->text);
    }
    if (!s.guided_decoding->backend.empty()) json_.member("guided_backend", s.guided_decoding->backend);
  }
  void presence(const Request& r) {
    std::vector<std::string> has;
    if (r.has_prompt_embeds) has.emplace_back("prompt_embeds");
    if (r.has_multi_modal_data) has.emplace_back("multi_modal_data");
    if (r.has_prefill_result) has.emplace_back("prefill_result");
    if (r.has_bootstrap_info) has.emplace_back("bootstrap_info");
    if (r.has_encoder_result) has.emplace_back("encoder_result");
    list("has", has);
  }
  template <class T>
  void optional(std::string_view name, const std::optional<T>& value) {
    if (value) json_.member(name, *value);
  }
  template <class T>
  void list(std::string_view name, const std::vector<T>& values) {
    if (values.empty()) return;
    json_.key(name);
    json_.begin_array();
    for (const T& value : values) json_.value(value);
    json_.end_array();
  }
  void flag(std::string_view name, bool value) {
    if (value) json_.member(name, value);
  }

  Buffer out_;
  wire::JsonWriter json_{out_};
};

// guided_json_str: the column has the string as the client sent it, the decoder its contents.
std::string expected(const RequestCase& c) {
  constexpr std::string_view kString = R"("guided_kind":"json","guided":")";
  const size_t at = c.expect.find(kString);
  if (at == std::string::npos) return c.expect;
  const size_t begin = at + kString.size() - 1;
  size_t end = begin + 1;
  while (c.expect[end] != '"') end += c.expect[end] == '\\' ? 2 : 1;
  wire::JsonReader in(as_bytes(std::string_view(c.expect).substr(begin, end + 1 - begin)));
  std::string schema;
  EXPECT_TRUE(in.read(schema));
  // Re-written compactly, as everything else in the column.
  return c.expect.substr(0, begin) + schema + c.expect.substr(end + 1);
}

class GoldenRequests : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Versions, GoldenRequests, testing::ValuesIn(kGoldenVersions), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
});

TEST_P(GoldenRequests, AreDecodedInBothCodecs) {
  const auto cases = load_request_cases(GetParam());
  EXPECT_GT(cases.size(), 200U);
  for (const RequestCase& c : cases) {
    SCOPED_TRACE(c.name());
    const auto from_json = decode_request(as_bytes(c.body), Codec::kJson);
    ASSERT_TRUE(from_json.ok()) << from_json.error().message;
    EXPECT_EQ(Summary(*from_json).text(), expected(c));

    wire::JsonReader in(as_bytes(c.body));
    Buffer packed;
    ASSERT_TRUE(in.append_msgpack(packed));
    const auto from_msgpack = decode_request(packed.view(), Codec::kMsgpack);
    ASSERT_TRUE(from_msgpack.ok()) << from_msgpack.error().message;
    EXPECT_EQ(Summary(*from_msgpack).text(), Summary(*from_json).text());
  }
}

TEST_P(GoldenRequests, CapturedFramesAreDecoded) {
  const std::string text = read_golden_file(std::string("wire/") + GetParam() + "/request-0.bin");
  wire::RequestFrame frame;
  ASSERT_EQ(wire::decode_request_frame(as_bytes(text), {}, frame).state, wire::FrameState::kFrame);
  const auto part = wire::decode_whole_two_part(frame.payload);
  ASSERT_TRUE(part.ok());
  const auto control = wire::decode_control_message(part->header);
  ASSERT_TRUE(control.ok());
  const bool msgpack = control->payload_codec == wire::PayloadCodec::kMsgpack;
  const auto request = decode_request(part->data, msgpack ? Codec::kMsgpack : Codec::kJson);
  ASSERT_TRUE(request.ok()) << request.error().message;
  EXPECT_EQ(request->model, "tiny");
  EXPECT_EQ(request->token_ids.size(), 52U);
  EXPECT_EQ(request->stop.max_tokens, 4U);
  EXPECT_EQ(request->eos_token_ids, std::vector<TokenId>{257});
}

}  // namespace
}  // namespace dyn::llm

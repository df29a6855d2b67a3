#include "worker/kv_query.h"

#include <vector>

#include "wire/json_reader.h"
#include "wire/msgpack_reader.h"
#include "wire/msgpack_writer.h"

namespace dyn::worker {
namespace {

using wire::pack_array;
using wire::pack_bool;
using wire::pack_map;
using wire::pack_nil;
using wire::pack_str;
using wire::pack_uint;

Result<KvQuery> decode(wire::Reader& in) {
  KvQuery query;
  in.read_object([&](std::string_view key) {
    if (key == "worker_id") return in.read(query.worker_id);
    if (key == "dp_rank") return in.read(query.dp_rank);
    if (key == "start_event_id") return in.read(query.start_event_id);
    if (key == "end_event_id") return in.read(query.end_event_id);
    if (key != "kind") return in.skip();
    if (in.peek() == wire::Kind::kString) {
      std::string_view kind;
      const bool read = in.read(kind);
      query.is_recovery = kind == "recovery";
      return read;
    }
    query.is_recovery = in.peek() == wire::Kind::kNull;
    return in.skip();
  });
  if (auto done = in.finish(); !done) return done.error().with_context("recovery query");
  return query;
}

void pack_optional(Buffer& out, const std::optional<uint64_t>& value) {
  value ? pack_uint(out, *value) : pack_nil(out);
}

// Msgpack, from which JSON is made where it is wanted: the numbers are the same in both.
void pack_events(Buffer& out, const char* name, const std::vector<llm::RouterEvent>& events, bool has_reset,
                 uint64_t last_event_id, KvAnswerForm form) {
  const auto event_form = form == KvAnswerForm::kStructReset ? llm::RouterEventForm::kEndpoint  //
                                                             : llm::RouterEventForm::kComponent;
  pack_map(out, 1);
  pack_str(out, name);
  if (form != KvAnswerForm::kList) {
    pack_map(out, has_reset ? 3 : 2);
    pack_str(out, "events");
  }
  pack_array(out, events.size());
  for (const auto& event : events) llm::encode_router_event(out, event, event_form);
  if (form == KvAnswerForm::kList) return;
  pack_str(out, "last_event_id");
  pack_uint(out, last_event_id);
  if (!has_reset) return;
  pack_str(out, "reset_scope");
  pack_str(out, "all");
}

void pack_value(Buffer& out, const KvQueryAnswer& answer, KvAnswerForm form) {
  if (const auto* range = std::get_if<KvEventRange>(&answer.value)) {
    pack_events(out, "Events", range->events, false, answer.last_event_id, form);
  } else if (const auto* dump = std::get_if<KvTreeDump>(&answer.value)) {
    pack_events(out, "TreeDump", dump->events, form == KvAnswerForm::kStructReset, answer.last_event_id, form);
  } else if (const auto* too_new = std::get_if<KvTooNew>(&answer.value)) {
    pack_map(out, 1);
    pack_str(out, "TooNew");
    pack_map(out, 3);
    pack_str(out, "requested_start");
    pack_optional(out, too_new->requested_start);
    pack_str(out, "requested_end");
    pack_optional(out, too_new->requested_end);
    pack_str(out, "newest_available");
    pack_uint(out, answer.last_event_id);
  } else {
    const auto& range_asked = std::get<KvInvalidRange>(answer.value);
    pack_map(out, 1);
    pack_str(out, "InvalidRange");
    pack_map(out, 2);
    pack_str(out, "start_id");
    pack_uint(out, range_asked.start);
    pack_str(out, "end_id");
    pack_uint(out, range_asked.end);
  }
}

// The item around it, in the caller's codec.
template <class PackValue>
void encode_item(Buffer& out, llm::Codec codec, PackValue pack) {
  Buffer msgpack;
  Buffer& target = codec == llm::Codec::kMsgpack ? out : msgpack;
  pack_map(target, 2);
  pack_str(target, "data");
  pack(target);
  pack_str(target, "complete_final");
  pack_bool(target, false);
  if (codec == llm::Codec::kJson) wire::MsgpackReader(msgpack.view()).append_json(out);
}

}  // namespace

Result<KvQuery> decode_kv_query(Bytes body, llm::Codec codec) {
  if (codec == llm::Codec::kMsgpack) {
    wire::MsgpackReader in(body);
    return decode(in);
  }
  wire::JsonReader in(body);
  return decode(in);
}

void encode_kv_answer(Buffer& out, llm::Codec codec, const KvQueryAnswer& answer, KvAnswerForm form) {
  encode_item(out, codec, [&](Buffer& to) { pack_value(to, answer, form); });
}

void encode_kv_query_error(Buffer& out, llm::Codec codec, std::string_view message) {
  encode_item(out, codec, [&](Buffer& to) {
    pack_map(to, 1);
    pack_str(to, "Error");
    pack_str(to, message);
  });
}

}  // namespace dyn::worker

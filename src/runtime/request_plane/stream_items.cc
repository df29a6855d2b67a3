#include "runtime/request_plane/stream_items.h"

#include "wire/json_writer.h"
#include "wire/msgpack_writer.h"
#include "wire/two_part.h"

namespace dyn::runtime {
namespace {

void append_json_error(Buffer& out, const ErrorItem& error) {
  wire::JsonWriter json(out);
  json.begin_object();
  json.key("data");
  json.begin_object();
  json.member("event", "error");
  json.key("comment");
  json.begin_array();
  json.value(error.comment);
  json.end_array();
  json.key("error");
  json.begin_object();
  json.key("error_type");
  if (error.backend) {
    json.begin_object();
    json.member("Backend", error.type);
    json.end_object();
  } else {
    json.value(error.type);
  }
  json.member("message", error.message);
  json.end_object();
  json.end_object();
  json.member("complete_final", false);
  json.end_object();
}

void append_msgpack_error(Buffer& out, const ErrorItem& error) {
  wire::pack_map(out, 2);
  wire::pack_str(out, "data");
  wire::pack_map(out, 3);
  wire::pack_str(out, "event");
  wire::pack_str(out, "error");
  wire::pack_str(out, "comment");
  wire::pack_array(out, 1);
  wire::pack_str(out, error.comment);
  wire::pack_str(out, "error");
  wire::pack_map(out, 2);
  wire::pack_str(out, "error_type");
  if (error.backend) {
    wire::pack_map(out, 1);
    wire::pack_str(out, "Backend");
  }
  wire::pack_str(out, error.type);
  wire::pack_str(out, "message");
  wire::pack_str(out, error.message);
  wire::pack_str(out, "complete_final");
  wire::pack_bool(out, false);
}

}  // namespace

void append_error_item(Buffer& out, wire::PayloadCodec codec, const ErrorItem& error) {
  if (codec == wire::PayloadCodec::kMsgpack) {
    append_msgpack_error(out, error);
  } else {
    append_json_error(out, error);
  }
}

void append_final_frame(Buffer& out, wire::PayloadCodec codec) {
  const size_t mark = wire::begin_two_part_data(out);
  if (codec == wire::PayloadCodec::kMsgpack) {
    wire::pack_map(out, 1);
    wire::pack_str(out, "complete_final");
    wire::pack_bool(out, true);
  } else {
    out.append(R"({"complete_final":true})");
  }
  wire::end_two_part_data(out, mark);
}

}  // namespace dyn::runtime

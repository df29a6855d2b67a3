// What is written into discovery: instance and model records, their keys, and the file names of the file store.
//
//   InstanceRecord record{.ns = "dynamo", .component = "backend", .endpoint = "generate", .instance_id = id,
//                         .transport_kind = "tcp", .transport_address = "10.0.0.21:40123/694d9b7a3c1e5f02/generate",
//                         .device_type = "cpu", .request_plane_codec = "msgpack"};
//   store("v1/instances", instance_key("dynamo", "backend", "generate", id), encode_instance_record(record));
//
// The instance record is the form of 1.5; older readers ignore the two members at its end. Keys carry the instance id
// in hexadecimal, values as a decimal number. Facts:
// lib/runtime/src/{component.rs,discovery/mod.rs,storage/kv/file.rs}. Thread rules: plain functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace dyn::wire {

struct InstanceRecord {
  std::string ns;
  std::string component;
  std::string endpoint;
  uint64_t instance_id = 0;
  std::string transport_kind;       // "tcp", "nats_tcp"; "http" only for frontends up to 1.2
  std::string transport_address;    // "host:port/path" with an IP literal for tcp; a subject for nats_tcp
  std::string device_type;          // "cpu", "cuda", or empty: not written
  std::string request_plane_codec;  // "json", "msgpack", or empty: not written, callers then send JSON
};

std::string encode_instance_record(const InstanceRecord& record);
Result<InstanceRecord> decode_instance_record(Bytes json);
// The same object without its type tag, as other records hold it.
std::string encode_instance(const InstanceRecord& record);

struct ModelRecord {
  std::string ns;
  std::string component;
  std::string endpoint;
  uint64_t instance_id = 0;
  std::string card_json;     // a complete JSON object, llm/model_card.h
  std::string model_suffix;  // LoRA adapters only: the last segment of the key
};

std::string encode_model_record(const ModelRecord& record);
Result<ModelRecord> decode_model_record(Bytes json);

// Keys below the buckets "v1/instances" and "v1/mdc": "dynamo/backend/generate/694d9b7a3c1e5f02[/suffix]".
std::string instance_key(std::string_view ns, std::string_view component, std::string_view endpoint,
                         uint64_t instance_id);
std::string model_key(std::string_view ns, std::string_view component, std::string_view endpoint, uint64_t instance_id,
                      std::string_view model_suffix = {});

// One variable segment of an event-plane key (1.4+): all but [A-Za-z0-9_-] as %XX.
std::string encode_key_segment(std::string_view segment);

// The file store's name of a relative key: every byte that is no ASCII letter or digit as %XX, upper case.
std::string encode_file_name(std::string_view key);
Result<std::string> decode_file_name(std::string_view name);

// Lower case; what is not in [a-z0-9_-] becomes '_'; no leading '_'. "Qwen/Qwen3-0.6B" -> "qwen_qwen3-0_6b".
std::string slugify(std::string_view text);
// The same with '-' replaced too, and '_' and the last 8 hex digits of the text's BLAKE3 behind it.
std::string slugify_unique(std::string_view text);

}  // namespace dyn::wire

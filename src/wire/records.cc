#include "wire/records.h"

#include <algorithm>

#include "base/ids.h"
#include "wire/blake3.h"
#include "wire/json_reader.h"
#include "wire/json_writer.h"

namespace dyn::wire {
namespace {

bool is_alphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

template <class Keep>
std::string percent_encode(std::string_view text, Keep keep) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string encoded;
  for (const char c : text) {
    if (keep(c)) {
      encoded += c;
      continue;
    }
    const auto byte = static_cast<uint8_t>(c);
    encoded += '%';
    encoded += kHex[byte >> 4];
    encoded += kHex[byte & 15];
  }
  return encoded;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// What all records begin with.
struct Identity {
  std::string type;
  std::string* ns;
  std::string* component;
  std::string* endpoint;
  uint64_t* instance_id;
  bool has_id = false;

  // Reads the member if it is one of these.
  bool read(Reader& in, std::string_view key, bool& done) {
    done = true;
    if (key == "type") return in.read(type);
    if (key == "namespace") return in.read(*ns);
    if (key == "component") return in.read(*component);
    if (key == "endpoint") return in.read(*endpoint);
    if (key == "instance_id") return has_id = in.read(*instance_id);
    done = false;
    return true;
  }

  [[nodiscard]] Result<void> check(std::string_view expected) const {
    if (type != expected) return invalid_argument("the type is not \"" + std::string(expected) + "\"");
    if (ns->empty() || component->empty() || endpoint->empty()) {
      return invalid_argument("namespace, component or endpoint is missing");
    }
    if (!has_id) return invalid_argument("instance_id is missing");
    return {};
  }
};

Result<InstanceRecord> decode_instance(Bytes json) {
  InstanceRecord record;
  Identity identity{{}, &record.ns, &record.component, &record.endpoint, &record.instance_id};
  JsonReader in(json);
  in.read_object([&](std::string_view key) {
    bool done = false;
    if (!identity.read(in, key, done) || done) return in.ok();
    if (key == "device_type") return in.read_unless_null(record.device_type);
    if (key == "request_plane_codec") return in.read_unless_null(record.request_plane_codec);
    if (key != "transport") return in.skip();
    return in.read_object([&](std::string_view kind) {
      record.transport_kind = kind;
      return in.read(record.transport_address);
    });
  });
  if (auto done = in.finish(); !done) return done.error();
  if (auto done = identity.check("Endpoint"); !done) return done.error();
  if (record.transport_kind.empty()) return invalid_argument("transport is missing");
  return record;
}

Result<ModelRecord> decode_model(Bytes json) {
  ModelRecord record;
  Identity identity{{}, &record.ns, &record.component, &record.endpoint, &record.instance_id};
  JsonReader in(json);
  in.read_object([&](std::string_view key) {
    bool done = false;
    if (!identity.read(in, key, done) || done) return in.ok();
    if (key == "model_suffix") return in.read_unless_null(record.model_suffix);
    if (key != "card_json") return in.skip();
    Buffer card;
    if (!in.append_json(card)) return false;
    record.card_json = as_text(card.view());
    return true;
  });
  if (auto done = in.finish(); !done) return done.error();
  if (auto done = identity.check("Model"); !done) return done.error();
  if (!record.card_json.starts_with('{')) return invalid_argument("card_json is no object");
  return record;
}

std::string write_instance(const InstanceRecord& record, std::string_view type) {
  Buffer out;
  JsonWriter json(out);
  json.begin_object();
  if (!type.empty()) json.member("type", type);
  json.member("component", record.component);
  json.member("endpoint", record.endpoint);
  json.member("namespace", record.ns);
  json.member("instance_id", record.instance_id);
  json.key("transport");
  json.begin_object();
  json.member(record.transport_kind, record.transport_address);
  json.end_object();
  if (!record.device_type.empty()) json.member("device_type", record.device_type);
  if (!record.request_plane_codec.empty()) json.member("request_plane_codec", record.request_plane_codec);
  json.end_object();
  return std::string(as_text(out.view()));
}

std::string slugify_with(std::string_view text, bool keep_hyphen) {
  std::string slug;
  for (const char raw : text) {
    // A character of several bytes becomes one '_', as it is one character to the readers.
    if ((static_cast<uint8_t>(raw) & 0xC0) == 0x80) continue;
    const char c = raw >= 'A' && raw <= 'Z' ? static_cast<char>(raw - 'A' + 'a') : raw;
    slug += is_alphanumeric(c) || (c == '-' && keep_hyphen) ? c : '_';
  }
  return slug;
}

std::string strip_leading_underscores(const std::string& slug) {
  return slug.substr(std::min(slug.find_first_not_of('_'), slug.size()));
}

}  // namespace

std::string encode_instance_record(const InstanceRecord& record) {
  return write_instance(record, "Endpoint");
}

std::string encode_instance(const InstanceRecord& record) {
  return write_instance(record, {});
}

Result<InstanceRecord> decode_instance_record(Bytes json) {
  auto record = decode_instance(json);
  if (!record) return record.error().with_context("instance record");
  return record;
}

std::string encode_model_record(const ModelRecord& record) {
  Buffer out;
  JsonWriter json(out);
  json.begin_object();
  json.member("type", "Model");
  json.member("namespace", record.ns);
  json.member("component", record.component);
  json.member("endpoint", record.endpoint);
  json.member("instance_id", record.instance_id);
  json.key("card_json");
  json.raw(record.card_json);
  if (!record.model_suffix.empty()) json.member("model_suffix", record.model_suffix);
  json.end_object();
  return std::string(as_text(out.view()));
}

Result<ModelRecord> decode_model_record(Bytes json) {
  auto record = decode_model(json);
  if (!record) return record.error().with_context("model record");
  return record;
}

std::string instance_key(std::string_view ns, std::string_view component, std::string_view endpoint,
                         uint64_t instance_id) {
  std::string key;
  for (const std::string_view part : {ns, component, endpoint}) {
    key += part;
    key += '/';
  }
  return key + to_hex(instance_id);
}

std::string model_key(std::string_view ns, std::string_view component, std::string_view endpoint, uint64_t instance_id,
                      std::string_view model_suffix) {
  std::string key = instance_key(ns, component, endpoint, instance_id);
  if (!model_suffix.empty()) {
    key += '/';
    key += model_suffix;
  }
  return key;
}

std::string encode_key_segment(std::string_view segment) {
  return percent_encode(segment, [](char c) { return is_alphanumeric(c) || c == '_' || c == '-'; });
}

std::string encode_file_name(std::string_view key) {
  return percent_encode(key, is_alphanumeric);
}

Result<std::string> decode_file_name(std::string_view name) {
  std::string key;
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] != '%') {
      key += name[i];
      continue;
    }
    const int high = name.size() - i > 2 ? hex_digit(name[i + 1]) : -1;
    const int low = name.size() - i > 2 ? hex_digit(name[i + 2]) : -1;
    if (high < 0 || low < 0) return invalid_argument("'" + std::string(name) + "' has a '%' without two hex digits");
    key += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return key;
}

std::string slugify(std::string_view text) {
  return strip_leading_underscores(slugify_with(text, true));
}

std::string slugify_unique(std::string_view text) {
  const std::string digest = blake3_hex(as_bytes(text));
  return strip_leading_underscores(slugify_with(text, false) + '_' + digest.substr(digest.size() - 8));
}

}  // namespace dyn::wire

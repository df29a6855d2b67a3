#include "runtime/discovery/record_rules.h"

#include <fmt/format.h>

#include "base/ids.h"

namespace dyn::runtime {

Result<void> check_bucket(const std::string& bucket) {
  bool in_part = false;
  bool valid = true;
  for (const char c : bucket) {
    if (c == '/') {
      valid = valid && in_part;
      in_part = false;
    } else {
      valid =
          valid && ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-');
      in_part = true;
    }
  }
  if (valid && in_part) return {};
  return invalid_argument(
      fmt::format("'{}' is no discovery bucket: a bucket is one or more names of letters, digits, _ "
                  "and -, separated by /, such as v1/instances",
                  bucket));
}

Result<void> check_record(const Record& record) {
  if (auto checked = check_bucket(record.bucket); !checked) return checked;
  if (record.key.empty()) {
    return invalid_argument("a discovery record in " + record.bucket +
                            " has no key: it needs one such as dynamo/backend/generate/1f");
  }
  if (record.value.size() > kMaxRecordBytes) {
    return invalid_argument(
        fmt::format("the discovery record {}/{} has {} bytes, more than the limit of {}: readers and "
                    "etcd would refuse it, shorten it",
                    record.bucket, record.key, record.value.size(), kMaxRecordBytes));
  }
  return {};
}

uint64_t new_instance_id() {
  for (;;) {
    if (const uint64_t id = random_u64(); id != 0) return id;
  }
}

Error already_exists(const Record& record) {
  return {
      Code::kAlreadyExists,
      fmt::format("the discovery record {}/{} belongs to another process that is alive: stop that process or publish "
                  "under another name",
                  record.bucket, record.key)};
}

Error closed_error() {
  return {Code::kUnavailable,
          "the discovery client is closed: this process is shutting down and publishes nothing more"};
}

}  // namespace dyn::runtime

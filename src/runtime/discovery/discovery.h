// Discovery: where a process publishes what it serves. One process has one instance id under which all its records live
// and vanish together (etcd: a lease, file: refreshed modification times, mem: the process).
//
//   discovery->put({kInstancesBucket, "dynamo/backend/generate/694d9b7a3c1e5f02", json});
//   ...
//   discovery->close();          // removes this process' records
//
// Thread rules: every function is safe from any thread and may block on I/O: never call one from a net thread.
// Facts: keys and values of Dynamo 0.8 ... 1.6 (lib/runtime/src/discovery, storage/kv).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace dyn::runtime {

inline constexpr char kInstancesBucket[] = "v1/instances";
inline constexpr char kModelCardsBucket[] = "v1/mdc";

struct Record {
  std::string bucket;  // "v1/instances", no slash at either end
  std::string key;     // below the bucket: "dynamo/backend/generate/694d9b7a3c1e5f02"
  std::string value;   // JSON
};

class Discovery {
 public:
  virtual ~Discovery() = default;

  // Fixed for the life of the object.
  [[nodiscard]] virtual uint64_t instance_id() const = 0;

  // Publishes a record that readers see complete or not at all, and keeps it alive. An own record of the same key is
  // replaced. A record of somebody else under the key is kAlreadyExists.
  virtual Result<void> put(const Record& record) = 0;

  // Removes an own record; a key that is not there is no error.
  virtual Result<void> remove(const std::string& bucket, const std::string& key) = 0;

  // Records of a bucket whose key starts with `prefix`, sorted by key.
  virtual Result<std::vector<Record>> list(const std::string& bucket, const std::string& prefix) = 0;

  // Removes all own records and stops keeping anything alive. Idempotent; also done by the destructor.
  virtual void close() = 0;
};

}  // namespace dyn::runtime

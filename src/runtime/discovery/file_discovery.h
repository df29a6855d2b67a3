// Discovery in a directory that several processes of one host, or of a shared file system, have in common.
//
//   auto discovery = make_file_discovery({.root = "/tmp/dynamo_store_kv"});
//   if (!discovery) return discovery.error();
//   (*discovery)->put(record);
//
// A bucket is a flat directory, a record one file with a percent-encoded name; alive is whose modification time is
// younger than the TTL. A record appears by link(2) from a file outside the buckets: the readers of every Dynamo
// release see one create event with the complete text (0.8 and 0.9 do not see a rename, and read a file written in
// place too early). A thread of its own refreshes the modification times and writes records anew that somebody else
// removed. Ownership: the caller owns the discovery. Thread rules: those of Discovery. Facts:
// lib/runtime/src/storage/kv/file.rs of Dynamo 0.8 ... 1.6.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/result.h"
#include "runtime/discovery/discovery.h"

namespace dyn::runtime {

struct FileDiscoveryOptions {
  std::string root;                       // empty: default_file_root(); made if it is not there
  std::chrono::milliseconds ttl{10'000};  // the readers' limit, fixed in Dynamo; other values are for tests
  bool sweep = true;                      // remove other processes' expired records, as every official process does
};

// $DYN_FILE_KV, else <$TMPDIR or /tmp>/dynamo_store_kv.
std::string default_file_root();

// Fails if the root cannot be made or written to.
Result<std::unique_ptr<Discovery>> make_file_discovery(FileDiscoveryOptions options);

}  // namespace dyn::runtime

// What every discovery backend demands of records, so that all refuse the same things in the same words.
//
//   if (auto checked = check_record(record); !checked) return checked;
//
// Thread rules: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/result.h"
#include "runtime/discovery/discovery.h"

namespace dyn::runtime {

// The largest value written or read. Model cards are some KiB; etcd refuses requests above 1.5 MiB by default.
inline constexpr size_t kMaxRecordBytes = size_t{1024} * 1024;

// "v1/instances": parts of [A-Za-z0-9_-], separated by one slash.
Result<void> check_bucket(const std::string& bucket);
Result<void> check_record(const Record& record);

// Random and never 0, which callers use for "no instance".
uint64_t new_instance_id();

Error already_exists(const Record& record);
Error closed_error();

}  // namespace dyn::runtime

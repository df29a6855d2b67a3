// Identifiers and randomness that need not be repeatable: instance ids, UUIDs. Thread rules: safe from any thread.
#pragma once

#include <cstdint>
#include <string>

namespace dyn {

uint64_t random_u64();            // from the operating system
std::string random_uuid();        // version 4, lower case
std::string to_hex(uint64_t id);  // lower case, no padding: the form of instance ids in keys and paths

}  // namespace dyn

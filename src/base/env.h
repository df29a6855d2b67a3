// Environment variables and Dynamo's reading of truth. Thread rules: read at start-up, before anything calls setenv.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace dyn {

// The value, or nothing when unset or empty.
std::optional<std::string> env(const char* name);

// "1", "true", "on", "yes" in any case (lib/truthy of Dynamo 1.x).
bool is_truthy(std::string_view text);
// "0", "false", "off", "no", and the empty string.
bool is_falsy(std::string_view text);

}  // namespace dyn

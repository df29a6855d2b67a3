// Environment variables and Dynamo's reading of truth. Thread rules: read at start-up, before anything calls setenv.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace dyn {

// The value, or nothing when unset or empty.
std::optional<std::string> env(const char* name);

// "1", "true", "on", "yes" in any case (lib/truthy of Dynamo 1.x).
bool is_truthy(std::string_view text);
// "0", "false", "off", "no", and the empty string.
bool is_falsy(std::string_view text);

// The value as a number or a truth; `fallback` when unset or empty. Anything else is an error that names the variable.
Result<double> env_number(const char* name, double fallback);
Result<bool> env_truth(const char* name, bool fallback);

}  // namespace dyn

// The parts of the option table, each in its own file; option_table() joins them. Private to app/options.
//
//   for (const Option& row : serving_options()) ...
//   constexpr Option kRow = without_effect(kEngineKey, "print_iter_log", Type::kBool, "false", Group::kEvents, why,
//   help);
//
// Constant data, safe from any thread.
#pragma once

#include <span>

#include "app/options/option.h"

namespace dyn::app {

std::span<const Option> serving_options();      // flags that this worker honours
std::span<const Option> engine_options();       // engine keys without a flag
std::span<const Option> unsupported_options();  // flags without effect, or refused
std::span<const Option> environment_options();  // environment variables without a flag

// What a row of the helpers below is: a flag with DYN_TRTLLM_<FLAG> as its variable, an engine key, or a variable.
enum class Place : uint8_t { kFlag, kEngineKey, kVariable };

constexpr Option row_at(Place place, std::string_view name, Type type, std::string_view fallback, Group group,
                        std::string_view help) {
  Option row{.name = name, .type = type, .fallback = fallback, .group = group, .help = help};
  row.low = std::numeric_limits<int64_t>::min();
  row.flag = place == Place::kFlag;
  if (place == Place::kFlag) row.env = "*";
  if (place == Place::kEngineKey) row.engine_key = name;
  if (place == Place::kVariable) row.env = name;
  return row;
}

constexpr Option without_effect(Place place, std::string_view name, Type type, std::string_view fallback, Group group,
                                std::string_view why, std::string_view help) {
  Option row = row_at(place, name, type, fallback, group, help);
  row.effect = Effect::kNoEffect;
  row.why = why;
  return row;
}

constexpr Option refused(Place place, std::string_view name, Type type, std::string_view fallback, Group group,
                         std::string_view why, std::string_view instead, std::string_view help) {
  Option row = row_at(place, name, type, fallback, group, help);
  row.effect = Effect::kRefused;
  row.why = why;
  row.instead = instead;
  return row;
}

// A row with more members: with(refused(...), [](Option& row) { row.accepts = "1"; }).
template <class Change>
constexpr Option with(Option row, Change change) {
  change(row);
  return row;
}
constexpr Option accepting(Option row, std::string_view values) {
  row.accepts = values;
  return row;
}
constexpr Option choosing(Option row, std::string_view choices) {
  row.choices = choices;
  return row;
}
constexpr Option named(Option row, std::string_view env, std::string_view aliases = {}) {
  row.env = env;
  row.aliases = aliases;
  return row;
}

}  // namespace dyn::app

// Settings: the value of every option and where it came from, and the rules by which sources replace each other.
//
//   auto resolved = resolve_settings(given, process_environment());
//   if (!resolved) return resolved.error();                   // every problem found, three lines each
//   resolved->settings.integer("max-batch-size");
//   for (const Notice& notice : resolved->notices) ...        // log once logging is up
//
// Later layers win: built-in default < --extra-engine-args < environment < flag < --override-engine-args and
// --trtllm.KEY. Within engine files the merge is field by field. Each value of a lower layer that is replaced by a
// different one is a notice, with both values and both sources. Plain values; no thread rules.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "app/options/command_line.h"
#include "app/options/option.h"
#include "base/log.h"
#include "base/result.h"

namespace dyn::app {

using Environment = std::map<std::string, std::string, std::less<>>;
Environment process_environment();

enum class Layer : uint8_t { kDefault, kFile, kEnvironment, kFlag, kOverride };

struct Source {
  Layer layer = Layer::kDefault;
  std::string detail;  // "engine.yaml:12", "DYN_NAMESPACE", "--namespace", "--override-engine-args"
};
std::string to_string(const Source& source);  // "flag --namespace"

struct Setting {
  Value value;
  Source source;

  [[nodiscard]] bool given() const { return source.layer != Layer::kDefault; }
};

struct Notice {
  log::Level level;
  std::string text;
};

// What is wrong with a configuration, for a person: one line each.
struct Problem {
  std::string what;
  std::string why;
  std::string fix;
};
Error to_error(const std::vector<Problem>& problems);

class Settings {
 public:
  Settings();  // all defaults

  // Adds a notice when a different value of another source is replaced.
  void set(const Option& option, Value value, Source source, std::vector<Notice>& notices);
  [[nodiscard]] const Setting& get(const Option& option) const { return values_.at(&option); }

  // By name of the option; it must exist, be of that type and, but for given() and the optional ones, have a value.
  [[nodiscard]] bool given(std::string_view name) const { return read(name).given(); }
  [[nodiscard]] bool has(std::string_view name) const;
  [[nodiscard]] bool boolean(std::string_view name) const;
  [[nodiscard]] int64_t integer(std::string_view name) const;
  [[nodiscard]] double number(std::string_view name) const;
  [[nodiscard]] std::string text(std::string_view name) const;  // "" when unset
  [[nodiscard]] std::vector<std::string> words(std::string_view name) const;

  // Names that the accessors above were asked for: a test holds them against the table.
  [[nodiscard]] const std::set<std::string, std::less<>>& names_read() const { return names_read_; }

 private:
  [[nodiscard]] const Setting& read(std::string_view name) const;

  std::map<const Option*, Setting> values_;
  mutable std::set<std::string, std::less<>> names_read_;
};

// A value as it may be shown: secrets and passwords in URLs are masked.
std::string shown_value(const Option& option, const Value& value);

// An option and its value as the person wrote them: "--max-batch-size 4", "DYN_NAMESPACE=x", "engine.yaml:3: dtype: x".
std::string as_written(const Option& option, const Setting& setting);

struct Resolved {
  Settings settings;
  std::vector<Notice> notices;
};
Result<Resolved> resolve_settings(const CommandLine& line, const Environment& environment);

}  // namespace dyn::app

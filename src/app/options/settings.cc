#include "app/options/settings.h"

#include <algorithm>
#include <cassert>

#include "app/options/text.h"

extern char** environ;  // NOLINT: POSIX' name

namespace dyn::app {

Environment process_environment() {
  Environment variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string_view::npos) variables.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return variables;
}

std::string to_string(const Source& source) {
  switch (source.layer) {
    case Layer::kDefault:
      return "default";
    case Layer::kFile:
      return "file " + source.detail;
    case Layer::kEnvironment:
      return "environment " + source.detail;
    case Layer::kFlag:
      return "flag " + source.detail;
    case Layer::kOverride:
      return "override " + source.detail;
  }
  return "?";
}

Error to_error(const std::vector<Problem>& problems) {
  std::string text;
  for (const Problem& problem : problems) {
    text += (text.empty() ? "" : "\n") + problem.what + "\n  why: " + problem.why + "\n  fix: " + problem.fix;
  }
  return invalid_argument(std::move(text));
}

namespace {

// "nats://user:secret@host" to "nats://user:***@host", wherever it stands in the text.
std::string mask_urls(std::string text) {
  for (size_t at = text.find("://"); at != std::string::npos; at = text.find("://", at)) {
    at += 3;
    const size_t end = std::min(text.find_first_of("/ ,\"", at), text.size());
    const size_t host = text.rfind('@', end);
    if (host == std::string::npos || host < at) continue;
    const size_t colon = text.find(':', at);
    if (colon == std::string::npos || colon >= host) continue;
    text.replace(colon + 1, host - colon - 1, "***");
  }
  return text;
}

}  // namespace

std::string shown_value(const Option& option, const Value& value) {
  if (option.secret && !std::holds_alternative<std::monostate>(value)) return "***";
  return mask_urls(value_text(value));
}

std::string as_written(const Option& option, const Setting& setting) {
  const std::string value = shown_value(option, setting.value);
  switch (setting.source.layer) {
    case Layer::kDefault:
      return (option.flag ? "--" : "") + std::string(option.name) + " " + value + " (the default)";
    case Layer::kFlag:
      if (option.type == Type::kBool) {
        return value == "false" && !setting.source.detail.starts_with("--no-") ? setting.source.detail + "=false"
                                                                               : setting.source.detail;
      }
      return setting.source.detail + " " + value;
    case Layer::kEnvironment:
      return setting.source.detail + "=" + value;
    case Layer::kFile:
    case Layer::kOverride:
      return setting.source.detail + ": " + std::string(option.engine_key) + ": " + value;
  }
  return value;
}

Settings::Settings() {
  for (const Option& option : option_table()) values_.emplace(&option, Setting{default_value(option), {}});
}

void Settings::set(const Option& option, Value value, Source source, std::vector<Notice>& notices) {
  Setting& setting = values_.at(&option);
  if (setting.given() && setting.value != value) {
    // Two words of the same layer contradict each other, which nobody intends.
    const log::Level level = setting.source.layer == source.layer ? log::Level::kWarn : log::Level::kInfo;
    notices.push_back({level, std::string(option.name) + ": " + shown_value(option, setting.value) + " (" +
                                  to_string(setting.source) + ") is replaced by " + shown_value(option, value) + " (" +
                                  to_string(source) + ")"});
  }
  setting.value = std::move(value);
  setting.source = std::move(source);
}

const Setting& Settings::read(std::string_view name) const {
  const Option* option = find_option(name);
  assert(option != nullptr && "no such option");
  names_read_.emplace(name);
  return values_.at(option);
}

bool Settings::has(std::string_view name) const {
  const Value& value = read(name).value;
  const auto* text = std::get_if<std::string>(&value);
  return !std::holds_alternative<std::monostate>(value) && (text == nullptr || !text->empty());
}
bool Settings::boolean(std::string_view name) const {
  const Value& value = read(name).value;
  return std::holds_alternative<bool>(value) && std::get<bool>(value);
}
int64_t Settings::integer(std::string_view name) const {
  return std::get<int64_t>(read(name).value);
}
double Settings::number(std::string_view name) const {
  return std::get<double>(read(name).value);
}
std::string Settings::text(std::string_view name) const {
  const Value& value = read(name).value;
  return std::holds_alternative<std::string>(value) ? std::get<std::string>(value) : std::string();
}
std::vector<std::string> Settings::words(std::string_view name) const {
  const Value& value = read(name).value;
  return std::holds_alternative<std::vector<std::string>>(value) ? std::get<std::vector<std::string>>(value)
                                                                 : std::vector<std::string>();
}

}  // namespace dyn::app

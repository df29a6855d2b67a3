#include "base/log.h"

#include <fmt/chrono.h>
#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <ctime>
#include <iterator>
#include <memory>
#include <vector>

namespace dyn::log {

namespace {

constexpr std::array<std::string_view, 6> kLevelNames = {"trace", "debug", "info", "warn", "error", "off"};
constexpr std::array<std::string_view, 5> kLevelWords = {"TRACE", "DEBUG", "INFO", "WARN", "ERROR"};
constexpr std::array<std::string_view, 5> kLevelColours = {"\033[35m", "\033[34m", "\033[32m", "\033[33m", "\033[31m"};

struct TargetLevel {
  std::string prefix;
  Level level;
};

struct State {
  Options options;
  std::vector<TargetLevel> targets;  // longest prefix first
  std::shared_ptr<spdlog::logger> sink;
};

std::atomic<int> g_lowest{static_cast<int>(Level::kInfo)};  // lowest level that any target lets through
std::atomic<int> g_default{static_cast<int>(Level::kInfo)};

State& state() {
  static State* const kState = [] {
    auto* made = new State;  // never destroyed: threads may log while statics go away
    auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    made->sink = std::make_shared<spdlog::logger>("dynamo", std::move(sink));
    made->sink->set_level(spdlog::level::trace);
    made->sink->set_pattern("%v");
    return made;
  }();
  return *kState;
}

bool parse_level(std::string_view text, Level& level) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  const auto* found = std::find(kLevelNames.begin(), kLevelNames.end(), lower);
  if (found == kLevelNames.end()) return false;
  level = static_cast<Level>(found - kLevelNames.begin());
  return true;
}

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

void append_json_string(std::string& out, std::string_view text) {
  out.push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(c));
        } else {
          out.push_back(c);
        }
    }
  }
  out.push_back('"');
}

std::string timestamp(bool local) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto micros = std::chrono::duration_cast<std::chrono::microseconds>(now).count();
  const auto seconds = static_cast<std::time_t>(micros / 1'000'000);
  std::tm parts{};
  local ? localtime_r(&seconds, &parts) : gmtime_r(&seconds, &parts);
  std::string text = fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:06}", parts, micros % 1'000'000);
  if (!local) return text + "Z";
  const auto offset = parts.tm_gmtoff / 60;
  const auto away = offset < 0 ? -offset : offset;
  return text + fmt::format("{}{:02}:{:02}", offset < 0 ? '-' : '+', away / 60, away % 60);
}

}  // namespace

void init(const Options& options) {
  State& s = state();
  s.options = options;
  s.targets.clear();
  Level fallback = Level::kInfo;
  std::vector<std::string> bad;
  std::string_view rest = options.filter;
  while (!rest.empty()) {
    const auto comma = rest.find(',');
    const std::string_view part = trim(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
    if (part.empty()) continue;
    const auto equals = part.find('=');
    Level level = Level::kInfo;
    if (equals == std::string_view::npos) {
      if (parse_level(part, level)) {
        fallback = level;
      } else {
        bad.emplace_back(part);
      }
    } else if (parse_level(trim(part.substr(equals + 1)), level)) {
      s.targets.push_back({std::string(trim(part.substr(0, equals))), level});
    } else {
      bad.emplace_back(part);
    }
  }
  std::sort(s.targets.begin(), s.targets.end(),
            [](const auto& a, const auto& b) { return a.prefix.size() > b.prefix.size(); });
  int lowest = static_cast<int>(fallback);
  for (const auto& target : s.targets) lowest = std::min(lowest, static_cast<int>(target.level));
  g_default.store(static_cast<int>(fallback), std::memory_order_relaxed);
  g_lowest.store(lowest, std::memory_order_relaxed);
  for (const auto& part : bad) {
    write(Level::kWarn, "log",
          fmt::format("DYN_LOG: '{}' is not understood and skipped (level or target=level)", part));
  }
}

bool enabled(Level level, std::string_view target) {
  if (static_cast<int>(level) < g_lowest.load(std::memory_order_relaxed)) return false;
  for (const auto& entry : state().targets) {
    if (target.substr(0, entry.prefix.size()) == entry.prefix) return level >= entry.level;
  }
  return static_cast<int>(level) >= g_default.load(std::memory_order_relaxed);
}

void write(Level level, std::string_view target, std::string_view message, std::initializer_list<Field> fields) {
  if (!enabled(level, target)) return;
  State& s = state();
  const auto index = std::min<size_t>(static_cast<size_t>(level), kLevelWords.size() - 1);
  const std::string time = timestamp(s.options.local_time);
  std::string line;
  if (s.options.jsonl) {
    line = fmt::format(R"({{"time":"{}","level":"{}","target":)", time, kLevelWords[index]);
    append_json_string(line, target);
    line += ",\"message\":";
    append_json_string(line, message);
    for (const auto& [key, value] : fields) {
      line.push_back(',');
      append_json_string(line, key);
      line.push_back(':');
      append_json_string(line, value);
    }
    line.push_back('}');
  } else {
    const std::string_view on = s.options.colour ? kLevelColours[index] : std::string_view{};
    const std::string_view off = s.options.colour ? std::string_view{"\033[0m"} : std::string_view{};
    line = fmt::format("{}  {}{:<5}{} {}: {}", time, on, kLevelWords[index], off, target, message);
    for (const auto& [key, value] : fields) fmt::format_to(std::back_inserter(line), " {}={}", key, value);
  }
  s.sink->log(spdlog::level::info, "{}", line);
  s.sink->flush();
}

}  // namespace dyn::log

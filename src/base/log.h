// Logging to standard error in Dynamo's two forms (readable, JSON lines), filtered by DYN_LOG.
//
//   DYN_INFO("request_plane", "listening on {}", address);
//   log::write(log::Level::kInfo, "worker", "request completed", {{"request_id", id}, {"tokens", "42"}});
//
// The target names the room or part; DYN_LOG=info,request_plane=debug filters by its prefix. A disabled line costs one
// relaxed load and no formatting. Never log once a token. Thread rules: everything but init() is safe from any thread.
// Facts: variables and JSON line of Dynamo 0.8 ... 1.6 (lib/runtime/src/logging.rs).
#pragma once

#include <fmt/format.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace dyn::log {

enum class Level : int { kTrace = 0, kDebug = 1, kInfo = 2, kWarn = 3, kError = 4, kOff = 5 };

struct Options {
  std::string filter = "info";  // DYN_LOG: level, and target=level, comma separated
  bool jsonl = false;           // DYN_LOGGING_JSONL
  bool local_time = false;      // DYN_LOG_USE_LOCAL_TZ
  bool colour = false;          // only on a terminal, never with DYN_SDK_DISABLE_ANSI_LOGGING or NO_COLOR
};

// Call once at start-up, before other threads log. Without it: level info, readable. A part of `filter` that cannot be
// understood is skipped and reported as a warning line.
void init(const Options& options);

bool enabled(Level level, std::string_view target);

using Field = std::pair<std::string_view, std::string>;
void write(Level level, std::string_view target, std::string_view message, std::initializer_list<Field> fields = {});

}  // namespace dyn::log

#define DYN_LOG_AT(level, target, ...)                                                                  \
  do {                                                                                                  \
    if (::dyn::log::enabled(level, target)) ::dyn::log::write(level, target, fmt::format(__VA_ARGS__)); \
  } while (false)
#define DYN_DEBUG(target, ...) DYN_LOG_AT(::dyn::log::Level::kDebug, target, __VA_ARGS__)
#define DYN_INFO(target, ...) DYN_LOG_AT(::dyn::log::Level::kInfo, target, __VA_ARGS__)
#define DYN_WARN(target, ...) DYN_LOG_AT(::dyn::log::Level::kWarn, target, __VA_ARGS__)
#define DYN_ERROR(target, ...) DYN_LOG_AT(::dyn::log::Level::kError, target, __VA_ARGS__)

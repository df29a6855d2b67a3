#include "runtime/request_plane/tcp_options.h"

#include <charconv>
#include <limits>
#include <optional>

#include "base/env.h"

namespace dyn::runtime {
namespace {

// Leaves `value` alone when the variable is unset.
template <class T>
Result<void> read_number(const char* name, T low, T high, T& value) {
  const auto text = env(name);
  if (!text) return {};
  T parsed{};
  const char* end = text->data() + text->size();
  const auto [stop, failure] = std::from_chars(text->data(), end, parsed);
  if (failure != std::errc() || stop != end || parsed < low || parsed > high) {
    return invalid_argument(std::string(name) + "='" + *text + "' is not a number from " + std::to_string(low) +
                            " to " + std::to_string(high));
  }
  value = parsed;
  return {};
}

constexpr size_t kDefaultQueueBesideEngineLimit = 16;
constexpr size_t kMostRequests = 10'000'000;
constexpr size_t kLeastMessageBytes = 1024;
constexpr size_t kMostMessageBytes = std::numeric_limits<uint32_t>::max();  // the frame's length field

}  // namespace

Result<TcpOptions> TcpOptions::from_environment() {
  TcpOptions options;
  options.host = env("DYN_TCP_RPC_HOST").value_or("");
  if (env("DYN_ENGINE_REQUEST_LIMIT")) options.admission.queued = kDefaultQueueBesideEngineLimit;
  for (auto&& read : {
           read_number<uint16_t>("DYN_TCP_RPC_PORT", 0, 65535, options.port),
           read_number<size_t>("DYN_TCP_MAX_MESSAGE_SIZE", kLeastMessageBytes, kMostMessageBytes,
                               options.max_message_bytes),
           read_number<int>("DYN_TCP_LISTEN_BACKLOG", 1, 65535, options.listen_backlog),
           read_number<size_t>("DYN_ENGINE_REQUEST_LIMIT", 1, kMostRequests, options.admission.running),
           read_number<size_t>("DYN_DYNAMO_REQUEST_QUEUE_LIMIT", 0, kMostRequests, options.admission.queued),
       }) {
    if (!read) return read.error();
  }
  return options;
}

}  // namespace dyn::runtime

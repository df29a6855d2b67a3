#include "runtime/health.h"

#include <algorithm>
#include <utility>

#include "wire/json_writer.h"

namespace dyn::runtime {
namespace {

const char* status_text(bool ready) {
  return ready ? "ready" : "notready";
}

}  // namespace

Health::Health(HealthOptions options) : options_(std::move(options)), process_ready_(options_.starting_ready) {}

void Health::add_endpoint(const std::string& name, bool has_canary) {
  const std::lock_guard lock(mutex_);
  endpoints_[name] = {.ready = !(options_.canary_enabled && has_canary), .has_canary = has_canary, .registered = true};
}

void Health::remove_endpoint(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto at = endpoints_.find(name);
  if (at == endpoints_.end()) return;
  at->second.ready = false;
  at->second.registered = false;
}

void Health::set_endpoint(const std::string& name, bool ready) {
  const std::lock_guard lock(mutex_);
  const auto at = endpoints_.find(name);
  if (at != endpoints_.end() && at->second.registered) at->second.ready = ready;
}

void Health::set_process(bool ready) {
  const std::lock_guard lock(mutex_);
  process_ready_ = ready;
}

void Health::shut_down() {
  const std::lock_guard lock(mutex_);
  shut_down_ = true;
}

void Health::set_trouble(const std::string& part, const std::string& text) {
  const std::lock_guard lock(mutex_);
  if (text.empty()) {
    troubles_.erase(part);
  } else {
    troubles_[part] = text;
  }
}

bool Health::ready() const {
  const std::lock_guard lock(mutex_);
  return ready_locked();
}

bool Health::ready_locked() const {
  if (shut_down_) return false;
  if (!options_.deciding_endpoints.empty()) {
    return std::all_of(options_.deciding_endpoints.begin(), options_.deciding_endpoints.end(), [&](const auto& name) {
      const auto at = endpoints_.find(name);
      return at != endpoints_.end() && at->second.ready;
    });
  }
  bool any_canary = false;
  for (const auto& [name, endpoint] : endpoints_) {
    if (!endpoint.has_canary) continue;
    if (!endpoint.ready) return false;
    any_canary = true;
  }
  return any_canary || process_ready_;
}

std::chrono::nanoseconds Health::uptime() const {
  return std::chrono::steady_clock::now() - start_;
}

Health::Report Health::report() const {
  const auto up = uptime();
  const auto secs = std::chrono::floor<std::chrono::seconds>(up);
  const std::lock_guard lock(mutex_);
  const bool is_ready = ready_locked();
  Buffer out;
  wire::JsonWriter json(out);
  json.begin_object();
  json.key("endpoints");
  json.begin_object();
  for (const auto& [name, endpoint] : endpoints_) json.member(name, status_text(endpoint.ready && !shut_down_));
  json.end_object();
  json.member("status", status_text(is_ready));
  if (!troubles_.empty()) {
    json.key("troubles");
    json.begin_object();
    for (const auto& [part, text] : troubles_) json.member(part, text);
    json.end_object();
  }
  json.key("uptime");
  json.begin_object();
  json.member("nanos", (up - secs).count());
  json.member("secs", secs.count());
  json.end_object();
  json.end_object();
  return {is_ready, std::string(as_text(out.view()))};
}

}  // namespace dyn::runtime

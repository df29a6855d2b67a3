// Health: whether this process should get traffic, from the states of its endpoints; the text behind /health.
//
//   Health health({.starting_ready = false});
//   health.add_endpoint("generate", /*has_canary=*/true);     // its route answers now
//   health.set_endpoint("generate", true);                    // a canary or a request succeeded
//   if (health.ready()) ...
//   health.shut_down();                                       // not ready from here on, whatever is set
//
// The rule, first that applies: (1) `deciding_endpoints` are named: all of them are ready; (2) endpoints with a canary
// exist: all of those are ready; (3) the state of the process, set_process(). With the canary switched on, an endpoint
// that has one is not ready before its first success (as Dynamo 1.5 and later).
// Ownership: outlives the status server and the canary. Thread rules: safe from any thread; no call blocks.
// Facts: lib/runtime/src/system_health.rs of Dynamo 0.8 ... 1.6.
#pragma once

#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace dyn::runtime {

struct HealthOptions {
  bool starting_ready = false;                  // DYN_SYSTEM_STARTING_HEALTH_STATUS: "ready", "notready"
  std::vector<std::string> deciding_endpoints;  // DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS: ["generate"]
  bool canary_enabled = false;                  // DYN_HEALTH_CHECK_ENABLED
};

class Health {
 public:
  explicit Health(HealthOptions options);

  // The endpoint's route answers from now on. `has_canary`: somebody probes it, or would if canaries were switched on.
  void add_endpoint(const std::string& name, bool has_canary);
  // Its route is gone: not ready, but still in the text. Later set_endpoint() calls do nothing.
  void remove_endpoint(const std::string& name);
  void set_endpoint(const std::string& name, bool ready);
  void set_process(bool ready);
  void shut_down();

  // Something that hurts but does not stop the process ("event plane": "broker away since ..."); shown as "troubles"
  // beside the three members Dynamo knows. An empty text takes it back.
  void set_trouble(const std::string& part, const std::string& text);

  [[nodiscard]] bool ready() const;
  [[nodiscard]] std::chrono::nanoseconds uptime() const;

  struct Report {
    bool ready = false;
    std::string json;  // {"endpoints":{"generate":"ready"},"status":"ready","uptime":{"nanos":1,"secs":42}}
  };
  [[nodiscard]] Report report() const;

 private:
  struct Endpoint {
    bool ready = false;
    bool has_canary = false;
    bool registered = false;
  };
  [[nodiscard]] bool ready_locked() const;

  const HealthOptions options_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  mutable std::mutex mutex_;
  std::map<std::string, Endpoint> endpoints_;
  std::map<std::string, std::string> troubles_;
  bool process_ready_;
  bool shut_down_ = false;
};

}  // namespace dyn::runtime

// Metric registry: counters, gauges and histograms in Prometheus' text format.
//
//   metrics::Registry registry({{"dynamo_namespace", "dynamo"}});
//   auto& requests = registry.counter("dynamo_component_requests_total", "Total number of requests ...", {{"model",
//   "m"}}); requests.increment(); std::string page = registry.exposition();
//
// Handles live as long as the registry; asking twice for the same name and labels gives the same handle. Thread rules:
// everything is safe from any thread; updating a handle takes no lock.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace dyn::metrics {

using Labels = std::map<std::string, std::string>;

class Counter {
 public:
  virtual ~Counter() = default;
  virtual void increment(double by = 1) = 0;
  [[nodiscard]] virtual double value() const = 0;
};

class Gauge {
 public:
  virtual ~Gauge() = default;
  virtual void set(double value) = 0;
  virtual void add(double by) = 0;
  [[nodiscard]] virtual double value() const = 0;
};

class Histogram {
 public:
  virtual ~Histogram() = default;
  virtual void observe(double value) = 0;
};

class Registry {
 public:
  explicit Registry(Labels constant_labels = {});
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  Counter& counter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge& gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  Histogram& histogram(const std::string& name, const std::string& help, const std::vector<double>& buckets,
                       const Labels& labels = {});

  // Called before each exposition, on the caller's thread: for values that are read rather than counted (uptime).
  void on_collect(std::function<void()> refresh);

  [[nodiscard]] std::string exposition();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dyn::metrics

#include "base/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>
#include <utility>

namespace dyn::metrics {

namespace {

class CounterHandle final : public Counter {
 public:
  explicit CounterHandle(prometheus::Counter& counter) : counter_(counter) {}
  void increment(double by) override { counter_.Increment(by); }
  [[nodiscard]] double value() const override { return counter_.Value(); }

 private:
  prometheus::Counter& counter_;
};

class GaugeHandle final : public Gauge {
 public:
  explicit GaugeHandle(prometheus::Gauge& gauge) : gauge_(gauge) {}
  void set(double value) override { gauge_.Set(value); }
  void add(double by) override { by < 0 ? gauge_.Decrement(-by) : gauge_.Increment(by); }
  [[nodiscard]] double value() const override { return gauge_.Value(); }

 private:
  prometheus::Gauge& gauge_;
};

class HistogramHandle final : public Histogram {
 public:
  explicit HistogramHandle(prometheus::Histogram& histogram) : histogram_(histogram) {}
  void observe(double value) override { histogram_.Observe(value); }

 private:
  prometheus::Histogram& histogram_;
};

}  // namespace

struct Registry::Impl {
  explicit Impl(Labels labels) : constant_labels(std::move(labels)) {}

  template <class Handle, class Base, class Make>
  Base& get(std::map<std::pair<std::string, Labels>, std::unique_ptr<Base>>& handles, const std::string& name,
            const Labels& labels, const Make& make) {
    const std::lock_guard lock(mutex);
    auto& slot = handles[{name, labels}];
    if (!slot) slot = std::make_unique<Handle>(make());
    return *slot;
  }

  Labels constant_labels;
  prometheus::Registry registry;
  std::mutex mutex;  // of the maps below; values themselves are atomic
  std::map<std::pair<std::string, Labels>, std::unique_ptr<Counter>> counters;
  std::map<std::pair<std::string, Labels>, std::unique_ptr<Gauge>> gauges;
  std::map<std::pair<std::string, Labels>, std::unique_ptr<Histogram>> histograms;
  std::vector<std::function<void()>> refreshers;
};

Registry::Registry(Labels constant_labels) : impl_(std::make_unique<Impl>(std::move(constant_labels))) {}
Registry::~Registry() = default;

Counter& Registry::counter(const std::string& name, const std::string& help, const Labels& labels) {
  return impl_->get<CounterHandle>(impl_->counters, name, labels, [&]() -> prometheus::Counter& {
    return prometheus::BuildCounter()
        .Name(name)
        .Help(help)
        .Labels(impl_->constant_labels)
        .Register(impl_->registry)
        .Add(labels);
  });
}

Gauge& Registry::gauge(const std::string& name, const std::string& help, const Labels& labels) {
  return impl_->get<GaugeHandle>(impl_->gauges, name, labels, [&]() -> prometheus::Gauge& {
    return prometheus::BuildGauge()
        .Name(name)
        .Help(help)
        .Labels(impl_->constant_labels)
        .Register(impl_->registry)
        .Add(labels);
  });
}

Histogram& Registry::histogram(const std::string& name, const std::string& help, const std::vector<double>& buckets,
                               const Labels& labels) {
  return impl_->get<HistogramHandle>(impl_->histograms, name, labels, [&]() -> prometheus::Histogram& {
    return prometheus::BuildHistogram()
        .Name(name)
        .Help(help)
        .Labels(impl_->constant_labels)
        .Register(impl_->registry)
        .Add(labels, buckets);
  });
}

void Registry::on_collect(std::function<void()> refresh) {
  const std::lock_guard lock(impl_->mutex);
  impl_->refreshers.push_back(std::move(refresh));
}

std::string Registry::exposition() {
  std::vector<std::function<void()>> refreshers;
  {
    const std::lock_guard lock(impl_->mutex);
    refreshers = impl_->refreshers;
  }
  for (const auto& refresh : refreshers) refresh();
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace dyn::metrics

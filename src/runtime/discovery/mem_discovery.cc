#include "runtime/discovery/mem_discovery.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "runtime/discovery/record_rules.h"

namespace dyn::runtime {

class MemStore {
 public:
  Result<void> put(uint64_t owner, const Record& record) {
    const std::lock_guard lock(mutex_);
    const auto [at, is_new] = entries_.try_emplace({record.bucket, record.key}, Entry{owner, record.value});
    if (is_new) return {};
    if (at->second.owner != owner) return already_exists(record);
    at->second.value = record.value;
    return {};
  }

  void remove(uint64_t owner, const std::string& bucket, const std::string& key) {
    const std::lock_guard lock(mutex_);
    const auto at = entries_.find({bucket, key});
    if (at != entries_.end() && at->second.owner == owner) entries_.erase(at);
  }

  std::vector<Record> list(const std::string& bucket, const std::string& prefix) {
    const std::lock_guard lock(mutex_);
    std::vector<Record> records;
    for (auto at = entries_.lower_bound({bucket, prefix}); at != entries_.end(); ++at) {
      const auto& [name, entry] = *at;
      if (name.first != bucket || !name.second.starts_with(prefix)) break;
      records.push_back({name.first, name.second, entry.value});
    }
    return records;
  }

  void remove_all(uint64_t owner) {
    const std::lock_guard lock(mutex_);
    std::erase_if(entries_, [owner](const auto& entry) { return entry.second.owner == owner; });
  }

 private:
  struct Entry {
    uint64_t owner;
    std::string value;
  };
  std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, Entry> entries_;
};

namespace {

class MemDiscovery final : public Discovery {
 public:
  explicit MemDiscovery(std::shared_ptr<MemStore> store) : store_(std::move(store)) {}
  MemDiscovery(const MemDiscovery&) = delete;
  MemDiscovery& operator=(const MemDiscovery&) = delete;
  ~MemDiscovery() override { MemDiscovery::close(); }

  [[nodiscard]] uint64_t instance_id() const override { return id_; }

  Result<void> put(const Record& record) override {
    if (auto checked = check_record(record); !checked) return checked;
    const std::lock_guard lock(mutex_);
    if (closed_) return closed_error();
    return store_->put(id_, record);
  }

  Result<void> remove(const std::string& bucket, const std::string& key) override {
    if (auto checked = check_bucket(bucket); !checked) return checked;
    store_->remove(id_, bucket, key);
    return {};
  }

  Result<std::vector<Record>> list(const std::string& bucket, const std::string& prefix) override {
    if (auto checked = check_bucket(bucket); !checked) return checked.error();
    return store_->list(bucket, prefix);
  }

  void close() override {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    store_->remove_all(id_);
  }

 private:
  const uint64_t id_ = new_instance_id();
  const std::shared_ptr<MemStore> store_;
  std::mutex mutex_;
  bool closed_ = false;
};

}  // namespace

std::shared_ptr<MemStore> make_mem_store() {
  return std::make_shared<MemStore>();
}

std::unique_ptr<Discovery> make_mem_discovery(std::shared_ptr<MemStore> store) {
  static const std::shared_ptr<MemStore> process_store = make_mem_store();
  if (!store) store = process_store;
  return std::make_unique<MemDiscovery>(std::move(store));
}

}  // namespace dyn::runtime

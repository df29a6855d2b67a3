#include "runtime/discovery/file_discovery.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "base/env.h"
#include "base/log.h"
#include "base/threads.h"
#include "runtime/discovery/bucket_dir.h"
#include "runtime/discovery/record_rules.h"
#include "wire/records.h"

namespace dyn::runtime {
namespace {

constexpr char kLog[] = "discovery";
constexpr size_t kMaxFileNameBytes = 255;  // NAME_MAX of Linux file systems
constexpr std::chrono::milliseconds kMaxRefreshInterval(3300);

class FileDiscovery final : public Discovery {
 public:
  FileDiscovery(FileDiscoveryOptions options, std::string canonical_root)
      : options_(std::move(options)), dirs_(std::move(canonical_root)) {
    dirs_.remove_leftovers(expired_before());
    keeper_ = std::thread([this] { keep(); });
  }
  FileDiscovery(const FileDiscovery&) = delete;
  FileDiscovery& operator=(const FileDiscovery&) = delete;
  ~FileDiscovery() override { FileDiscovery::close(); }

  [[nodiscard]] uint64_t instance_id() const override { return id_; }

  Result<void> put(const Record& record) override {
    if (auto checked = check_record(record); !checked) return checked;
    const std::string name = wire::encode_file_name(record.key);
    if (name.size() > kMaxFileNameBytes) {
      return invalid_argument(
          fmt::format("the discovery key {} makes a file name of {} bytes, the file system takes {}: "
                      "use shorter namespace, component and endpoint names",
                      record.key, name.size(), kMaxFileNameBytes));
    }
    const std::lock_guard lock(mutex_);
    if (closed_) return closed_error();
    buckets_.insert(record.bucket);
    const auto own = own_.find({record.bucket, name});
    const auto how = own == own_.end() ? Publish::kCreate : Publish::kReplace;
    if (auto published = dirs_.publish(record.bucket, name, record.value, how, expired_before()); !published) {
      // The record as it was, if there was one, stays ours: the keeper restores it should its file be gone.
      return published.error().code == Code::kAlreadyExists ? already_exists(record) : published.error();
    }
    own_.insert_or_assign({record.bucket, name}, Own{record.value, false});
    return {};
  }

  Result<void> remove(const std::string& bucket, const std::string& key) override {
    if (auto checked = check_bucket(bucket); !checked) return checked;
    const std::string name = wire::encode_file_name(key);
    const std::lock_guard lock(mutex_);
    // Forgotten first: if the file cannot be removed now, it expires.
    if (own_.erase({bucket, name}) == 0) return {};
    return dirs_.remove(bucket, name);
  }

  Result<std::vector<Record>> list(const std::string& bucket, const std::string& prefix) override {
    if (auto checked = check_bucket(bucket); !checked) return checked.error();
    auto files = dirs_.read(bucket, expired_before());
    if (!files) return files.error();
    {
      const std::lock_guard lock(mutex_);
      if (!closed_) buckets_.insert(bucket);
    }
    std::vector<Record> records;
    for (auto& file : *files) {
      auto key = wire::decode_file_name(file.name);
      if (!key || !key->starts_with(prefix)) continue;
      records.push_back({bucket, std::move(*key), std::move(file.text)});
    }
    std::sort(records.begin(), records.end(), [](const Record& a, const Record& b) { return a.key < b.key; });
    return records;
  }

  void close() override {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    wake_.notify_all();
    const std::lock_guard closing(close_mutex_);
    if (keeper_.joinable()) keeper_.join();
    const std::lock_guard lock(mutex_);
    for (const auto& [place, own] : own_) {
      if (auto removed = dirs_.remove(place.first, place.second); !removed) {
        DYN_WARN(kLog, "{}; it expires after {} s", removed.error().message, options_.ttl.count() / 1000);
      }
    }
    own_.clear();
  }

 private:
  struct Own {
    std::string value;
    bool was_missing = false;  // at the last refresh
  };

  [[nodiscard]] BucketDirs::WallTime expired_before() const { return std::chrono::system_clock::now() - options_.ttl; }

  [[nodiscard]] std::chrono::milliseconds refresh_interval() const {
    return std::clamp(options_.ttl / 3, std::chrono::milliseconds(1), kMaxRefreshInterval);
  }

  void keep() {
    set_thread_name("discovery");
    std::unique_lock lock(mutex_);
    for (;;) {
      const auto due = std::chrono::steady_clock::now() + refresh_interval();
      if (wake_.wait_until(lock, due, [this] { return closed_; })) return;
      const bool late = std::chrono::steady_clock::now() - due > options_.ttl / 2;
      refresh_own();
      // After a pause of the whole machine everything looks expired; give the owners time to refresh, too.
      if (options_.sweep && !late) sweep_others();
    }
  }

  void refresh_own() {
    Error trouble;
    bool failed = false;
    std::vector<std::pair<const Place*, Own*>> missing;
    for (auto& [place, own] : own_) {
      const auto refreshed = dirs_.refresh(place.first, place.second);
      if (refreshed) {
        own.was_missing = false;
      } else if (refreshed.error().code == Code::kNotFound) {
        missing.emplace_back(&place, &own);
      } else {
        trouble = refreshed.error();
        failed = true;
      }
    }
    // After all the rest is fresh: this may wait for a lock.
    for (const auto& [place, own] : missing) {
      const auto published = dirs_.publish(place->first, place->second, own->value, Publish::kCreate, expired_before());
      if (published || published.error().code == Code::kAlreadyExists) {
        if (!own->was_missing) {
          DYN_WARN(
              kLog,
              "somebody removed {}; it is published again (if this goes on: the clocks of the hosts that share the "
              "directory must agree)",
              dirs_.path_of(place->first, place->second));
        }
        own->was_missing = true;
      } else {
        trouble = published.error();
        failed = true;
      }
    }
    report(refresh_trouble_, failed ? trouble.message : std::string(), "discovery records are kept alive again");
  }

  void sweep_others() {
    std::string trouble;
    for (const auto& bucket : buckets_) {
      const auto swept =
          dirs_.sweep(bucket, expired_before(), [&](const std::string& name) { return own_.contains({bucket, name}); });
      if (!swept) {
        trouble = swept.error().message;
      } else if (*swept > 0) {
        DYN_INFO(kLog, "removed {} expired record(s) of other processes from {}/{}", *swept, dirs_.root(), bucket);
      }
    }
    report(sweep_trouble_, trouble, "expired discovery records can be removed again");
  }

  // One line when trouble begins, changes or ends, none while it lasts.
  static void report(std::string& state, const std::string& trouble, const char* well_again) {
    if (trouble == state) return;
    if (trouble.empty()) {
      DYN_INFO(kLog, "{}", well_again);
    } else {
      DYN_ERROR(kLog, "{}", trouble);
    }
    state = trouble;
  }

  using Place = std::pair<std::string, std::string>;  // bucket, file name

  const FileDiscoveryOptions options_;
  const BucketDirs dirs_;
  const uint64_t id_ = new_instance_id();

  std::mutex mutex_;  // guards what follows; held during I/O, so that records change one at a time
  std::condition_variable wake_;
  bool closed_ = false;
  std::map<Place, Own> own_;
  std::set<std::string> buckets_;  // used so far: those are swept
  std::string refresh_trouble_;
  std::string sweep_trouble_;

  std::mutex close_mutex_;
  std::thread keeper_;
};

}  // namespace

std::string default_file_root() {
  if (auto root = env("DYN_FILE_KV")) return *root;
  return env("TMPDIR").value_or("/tmp") + "/dynamo_store_kv";
}

Result<std::unique_ptr<Discovery>> make_file_discovery(FileDiscoveryOptions options) {
  if (options.root.empty()) options.root = default_file_root();
  if (options.ttl < std::chrono::milliseconds(10)) {
    return invalid_argument("a time to live of less than 10 ms cannot be kept: use Dynamo's 10 s");
  }
  std::error_code error;
  std::filesystem::create_directories(options.root, error);
  if (error) {
    return Error{Code::kUnavailable, fmt::format("cannot make the discovery directory {}: {}; set DYN_FILE_KV to a "
                                                 "directory this user can write to",
                                                 options.root, error.message())};
  }
  // Readers up to 1.0 compare the paths of events with the path they were given: theirs and ours must be the real one.
  const auto canonical = std::filesystem::canonical(options.root, error);
  if (error) {
    return Error{Code::kUnavailable, fmt::format("cannot resolve the discovery directory {}: {}; set DYN_FILE_KV to "
                                                 "another directory",
                                                 options.root, error.message())};
  }
  if (auto writable = BucketDirs(canonical.string()).check_writable(); !writable) return writable.error();
  return std::unique_ptr<Discovery>(std::make_unique<FileDiscovery>(std::move(options), canonical.string()));
}

}  // namespace dyn::runtime

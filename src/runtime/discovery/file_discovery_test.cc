#include "runtime/discovery/file_discovery.h"

#include <dirent.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>
#include <vector>

#include "base/posix.h"
#include "base/test_support.h"
#include "runtime/discovery/bucket_dir.h"
#include "runtime/discovery/discovery_contract.h"

namespace dyn::runtime {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

class FileTestStore final : public DiscoveryStore {
 public:
  std::unique_ptr<Discovery> connect() override {
    auto discovery = make_file_discovery({.root = root_ / "store"});
    return discovery ? std::move(*discovery) : nullptr;
  }

 private:
  TempDir root_;
};

INSTANTIATE_TEST_SUITE_P(File, DiscoveryContract,
                         ::testing::Values(DiscoveryBackend{"file", [] { return std::make_unique<FileTestStore>(); }}));

constexpr char kFileName[] = "dynamo%2Fbackend%2Fgenerate%2F1f";
const Record kRecord{kInstancesBucket, "dynamo/backend/generate/1f", R"({"type":"Endpoint"})"};

class FileDiscoveryTest : public ::testing::Test {
 protected:
  std::unique_ptr<Discovery> open(milliseconds ttl = std::chrono::seconds(10), bool sweep = true) {
    auto discovery = make_file_discovery({.root = root_, .ttl = ttl, .sweep = sweep});
    EXPECT_TRUE(discovery.ok()) << discovery.error().message;
    return std::move(*discovery);
  }
  [[nodiscard]] std::string file() const { return root_ + "/v1/instances/" + kFileName; }
  static std::string read(const std::string& path) {
    const auto fd = open_fd(path, O_RDONLY | O_CLOEXEC);
    if (!fd) return "(" + fd.error().message + ")";
    return *read_all(fd->get(), 1 << 20);
  }
  static void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }
  static void make_old(const std::string& path, int seconds) {
    std::array<timespec, 2> times{};
    ::clock_gettime(CLOCK_REALTIME, times.data());
    times[0].tv_sec -= seconds;
    times[1] = times[0];
    ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times.data(), 0), 0);
  }
  static std::chrono::nanoseconds age(const std::string& path) {
    struct stat info{};
    if (::stat(path.c_str(), &info) != 0) return std::chrono::hours(1);
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    return std::chrono::seconds(now.tv_sec - info.st_mtim.tv_sec) +
           std::chrono::nanoseconds(now.tv_nsec - info.st_mtim.tv_nsec);
  }
  static std::vector<std::string> entries(const std::string& dir) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

  TempDir temp_;
  std::string root_ = temp_ / "kv";
};

TEST_F(FileDiscoveryTest, LayoutIsDynamos) {
  auto discovery = open();
  ASSERT_TRUE(discovery->put(kRecord).ok());
  ASSERT_TRUE(discovery->put({kModelCardsBucket, "my-ns/b_1/g.x/1f/lo%ra", "{}"}).ok());
  EXPECT_EQ(read(file()), kRecord.value);
  EXPECT_THAT(entries(root_), ::testing::ElementsAre("v1")) << "no temporary file may stay";
  EXPECT_THAT(entries(root_ + "/v1/mdc"), ::testing::ElementsAre("my%2Dns%2Fb%5F1%2Fg%2Ex%2F1f%2Flo%25ra"));
  discovery->close();
  EXPECT_THAT(entries(root_ + "/v1/instances"), ::testing::IsEmpty());
  EXPECT_THAT(entries(root_ + "/v1/mdc"), ::testing::IsEmpty());
}

TEST_F(FileDiscoveryTest, DefaultRootFollowsTheEnvironment) {
  ::unsetenv("DYN_FILE_KV");
  ::setenv("TMPDIR", "/some/tmp", 1);
  EXPECT_EQ(default_file_root(), "/some/tmp/dynamo_store_kv");
  ::unsetenv("TMPDIR");
  EXPECT_EQ(default_file_root(), "/tmp/dynamo_store_kv");
  ::setenv("DYN_FILE_KV", "/x/y", 1);
  EXPECT_EQ(default_file_root(), "/x/y");
  ::unsetenv("DYN_FILE_KV");
}

// What an official watcher does: read the file at the moment of the event.
TEST_F(FileDiscoveryTest, AWatcherSeesOneCreateAndNeverPartOfARecord) {
  auto discovery = open();
  ASSERT_TRUE(discovery->put({kInstancesBucket, "other", "{}"}).ok());  // makes the directory
  const std::string dir = root_ + "/v1/instances";
  const UniqueFd watch(::inotify_init1(IN_CLOEXEC));
  ASSERT_GE(::inotify_add_watch(watch.get(), dir.c_str(), IN_ALL_EVENTS), 0);

  const std::string value = "{" + std::string(300'000, 'x') + "}";
  constexpr int kUpdates = 50;
  std::thread writer([&] {
    for (int i = 0; i < kUpdates; ++i) EXPECT_TRUE(discovery->put({kInstancesBucket, kRecord.key, value}).ok());
    EXPECT_TRUE(discovery->remove(kInstancesBucket, "other").ok());
  });
  int creates = 0;
  bool ended = false;
  while (!ended) {
    pollfd ready{watch.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&ready, 1, 20'000), 1) << "no event";
    alignas(inotify_event) std::array<char, 16 * 1024> buffer{};
    const ssize_t got = ::read(watch.get(), buffer.data(), buffer.size());
    ASSERT_GT(got, 0);
    for (ssize_t at = 0; at < got;) {
      const auto* event = reinterpret_cast<const inotify_event*>(buffer.data() + at);
      at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
      const std::string name = event->len > 0 ? event->name : "";
      if ((event->mask & IN_DELETE) != 0 && name == "other") ended = true;
      if (name != kFileName) {
        EXPECT_TRUE(name.empty() || name == "other") << "a foreign entry: " << name;
        continue;
      }
      EXPECT_EQ(event->mask & (IN_MODIFY | IN_MOVED_TO | IN_MOVED_FROM | IN_CLOSE_WRITE), 0U)
          << "written or renamed in place";
      if ((event->mask & IN_CREATE) == 0) continue;
      ++creates;
      const std::string seen = read(dir + "/" + name);
      EXPECT_TRUE(seen == value || seen.starts_with("(cannot open")) << seen.size() << " bytes";
    }
  }
  writer.join();
  EXPECT_EQ(creates, kUpdates);
}

TEST_F(FileDiscoveryTest, ModificationTimesStayYoung) {
  auto discovery = open(milliseconds(300), false);
  ASSERT_TRUE(discovery->put(kRecord).ok());
  for (int i = 0; i < 3; ++i) {
    make_old(file(), 60);
    EXPECT_TRUE(eventually([&] { return age(file()) < std::chrono::seconds(30); }));
  }
}

TEST_F(FileDiscoveryTest, ARecordDeletedByHandComesBack) {
  auto discovery = open(milliseconds(100));
  ASSERT_TRUE(discovery->put(kRecord).ok());
  for (int i = 0; i < 3; ++i) {
    fs::remove(file());
    EXPECT_TRUE(eventually([&] { return read(file()) == kRecord.value; }));
  }
  fs::remove_all(root_ + "/v1/instances");
  EXPECT_TRUE(eventually([&] { return read(file()) == kRecord.value; })) << "bucket deleted";
  fs::remove_all(root_);
  EXPECT_TRUE(eventually([&] { return read(file()) == kRecord.value; })) << "root deleted";
  discovery->close();
  EXPECT_FALSE(fs::exists(file()));
}

TEST_F(FileDiscoveryTest, PutWorksAfterTheRootWasDeleted) {
  auto discovery = open();
  fs::remove_all(root_);
  EXPECT_TRUE(discovery->list(kInstancesBucket, "")->empty());
  ASSERT_TRUE(discovery->put(kRecord).ok());
  EXPECT_EQ(read(file()), kRecord.value);
}

TEST_F(FileDiscoveryTest, KeepsGoingWhenTheRootTurnsIntoAFile) {
  auto discovery = open(milliseconds(100));
  ASSERT_TRUE(discovery->put(kRecord).ok());
  fs::remove_all(root_);
  write(root_, "not a directory");
  const auto put = discovery->put({kInstancesBucket, "x", "{}"});
  ASSERT_FALSE(put.ok());
  EXPECT_THAT(put.error().message, ::testing::HasSubstr("Not a directory"));
  EXPECT_THAT(put.error().message, ::testing::HasSubstr("DYN_FILE_KV"));
  std::this_thread::sleep_for(milliseconds(150));  // some failing refreshes
  fs::remove(root_);
  EXPECT_TRUE(eventually([&] { return read(file()) == kRecord.value; }));
  EXPECT_FALSE(fs::exists(root_ + "/v1/instances/x")) << "a failed put must not be published later";
}

TEST_F(FileDiscoveryTest, SweepRemovesWhatExpiredAndNothingElse) {
  auto discovery = open(milliseconds(600));
  ASSERT_TRUE(discovery->put(kRecord).ok());
  const std::string dir = root_ + "/v1/instances/";
  write(dir + "dead", "{}");
  write(dir + ".tmp_0123456789abcdef", "{");
  make_old(dir + "dead", 5);
  make_old(dir + ".tmp_0123456789abcdef", 5);
  fs::create_directory(dir + "directory");
  make_old(dir + "directory", 100);
  EXPECT_THAT(*discovery->list(kInstancesBucket, "d"), ::testing::SizeIs(1)) << "the expired record is not listed";
  EXPECT_TRUE(eventually([&] { return !fs::exists(dir + "dead") && !fs::exists(dir + ".tmp_0123456789abcdef"); }));
  EXPECT_TRUE(fs::exists(dir + "directory"));
  EXPECT_TRUE(fs::exists(file()));
}

TEST_F(FileDiscoveryTest, SweepCanBeSwitchedOff) {
  auto discovery = open(milliseconds(60), false);
  ASSERT_TRUE(discovery->put(kRecord).ok());
  const std::string dead = root_ + "/v1/instances/dead";
  write(dead, "{}");
  make_old(dead, 100);
  make_old(file(), 100);
  EXPECT_TRUE(eventually([&] { return age(file()) < std::chrono::seconds(50); }));  // the keeper was there
  EXPECT_TRUE(fs::exists(dead));
}

TEST_F(FileDiscoveryTest, AnExpiredRecordOfADeadProcessIsTakenOver) {
  auto discovery = open(std::chrono::seconds(10), false);
  fs::create_directories(root_ + "/v1/instances");
  write(file(), "dead");
  EXPECT_EQ(discovery->put(kRecord).error().code, Code::kAlreadyExists);
  make_old(file(), 11);
  ASSERT_TRUE(discovery->put(kRecord).ok());
  EXPECT_EQ(read(file()), kRecord.value);
}

TEST_F(FileDiscoveryTest, LeftoversOfDeadWritersAreRemovedFromTheRoot) {
  fs::create_directories(root_);
  const std::string old_one = root_ + "/.dynamo_trtllm_tmp_00000000000000aa";
  const std::string new_one = root_ + "/.dynamo_trtllm_tmp_00000000000000ab";
  const std::string foreign = root_ + "/.stage_x";
  for (const auto& path : {old_one, new_one, foreign}) write(path, "x");
  make_old(old_one, 100);
  make_old(foreign, 100);
  auto discovery = open();
  EXPECT_FALSE(fs::exists(old_one));
  EXPECT_TRUE(fs::exists(new_one)) << "may be in use";
  EXPECT_TRUE(fs::exists(foreign));
}

TEST_F(FileDiscoveryTest, TheRootIsResolved) {
  fs::create_directories(temp_ / "real");
  fs::create_directory_symlink(temp_ / "real", temp_ / "link");
  auto discovery = make_file_discovery({.root = temp_ / "link"});
  ASSERT_TRUE(discovery.ok());
  ASSERT_TRUE((*discovery)->put(kRecord).ok());
  fs::remove(temp_ / "link");  // from here on only the resolved path works
  ASSERT_TRUE((*discovery)->put({kInstancesBucket, "b", "{}"}).ok());
  EXPECT_TRUE(fs::exists(temp_ / "real/v1/instances/b"));
}

TEST_F(FileDiscoveryTest, RootsThatCannotWorkAreRefusedWithAdvice) {
  write(temp_ / "file", "");
  std::vector<std::string> roots = {temp_ / "file", temp_ / "file/below", "/proc/dynamo", "/sys/dynamo"};
  if (::geteuid() != 0) {
    fs::create_directory(temp_ / "read_only");
    fs::permissions(temp_ / "read_only", fs::perms::owner_read | fs::perms::owner_exec);
    roots.push_back(temp_ / "read_only");
  }
  for (const auto& root : roots) {
    const auto discovery = make_file_discovery({.root = root});
    ASSERT_FALSE(discovery.ok()) << root;
    EXPECT_THAT(discovery.error().message, ::testing::HasSubstr(root));
    EXPECT_THAT(discovery.error().message, ::testing::HasSubstr("DYN_FILE_KV"));
    EXPECT_THAT(discovery.error().message, ::testing::Not(::testing::HasSubstr("\n")));
  }
}

TEST_F(FileDiscoveryTest, AKeyTooLongForAFileNameIsRefused) {
  auto discovery = open();
  EXPECT_TRUE(discovery->put({kInstancesBucket, std::string(255, 'a'), "{}"}).ok());
  const auto put = discovery->put({kInstancesBucket, std::string(256, 'a'), "{}"});
  ASSERT_FALSE(put.ok());
  EXPECT_EQ(put.error().code, Code::kInvalidArgument);
}

TEST_F(FileDiscoveryTest, AHeldLockIsAnErrorAndNotAHang) {
  auto discovery = open();
  ASSERT_TRUE(discovery->put(kRecord).ok());
  const auto dir = open_fd(root_ + "/v1/instances", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_TRUE(dir.ok());
  ASSERT_EQ(::flock(dir->get(), LOCK_EX), 0);
  const auto put = discovery->put({kInstancesBucket, kRecord.key, "new"});
  ASSERT_FALSE(put.ok());
  EXPECT_EQ(put.error().code, Code::kUnavailable);
  EXPECT_EQ(read(file()), kRecord.value) << "a failed update leaves the record as it was";
  discovery->close();
  EXPECT_FALSE(fs::exists(file())) << "removal does not depend on the lock";
}

TEST_F(FileDiscoveryTest, WritersShareTheLock) {
  auto discovery = open();
  ASSERT_TRUE(discovery->put(kRecord).ok());
  const auto dir = open_fd(root_ + "/v1/instances", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_EQ(::flock(dir->get(), LOCK_EX), 0);
  std::atomic<bool> published = false;
  std::thread writer([&] {
    EXPECT_TRUE(discovery->put({kInstancesBucket, "waits", "{}"}).ok());
    published = true;
  });
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_FALSE(published);
  ::flock(dir->get(), LOCK_UN);
  writer.join();
  EXPECT_TRUE(published);
}

// Several processes publish, update and remove in one root at the same time.
TEST_F(FileDiscoveryTest, ProcessesShareARoot) {
  constexpr int kProcesses = 3;
  std::vector<pid_t> children;
  for (int p = 0; p < kProcesses; ++p) {
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      auto discovery = make_file_discovery({.root = root_});
      bool ok = discovery.ok();
      for (int i = 0; ok && i < 30; ++i) {
        const std::string key = "p" + std::to_string(p) + "/" + std::to_string(i % 4);
        ok = (*discovery)->put({kInstancesBucket, key, std::string(1000, 'v')}).ok();
        ok = ok && (i % 5 != 0 || (*discovery)->remove(kInstancesBucket, key).ok());
        const auto seen = (*discovery)->list(kInstancesBucket, "");
        ok = ok && seen.ok();
        for (const auto& record : *seen) ok = ok && record.value.size() == 1000;
      }
      if (ok) (*discovery)->close();
      ::_exit(ok ? 0 : 1);
    }
    children.push_back(pid);
  }
  for (const pid_t pid : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  EXPECT_THAT(entries(root_ + "/v1/instances"), ::testing::IsEmpty());
  EXPECT_THAT(entries(root_), ::testing::ElementsAre("v1"));
}

TEST_F(FileDiscoveryTest, AKilledProcessLeavesRecordsThatAnotherSweeps) {
  constexpr milliseconds kTtl(1500);
  std::array<int, 2> ready{};
  ASSERT_EQ(::pipe(ready.data()), 0);
  const pid_t pid = ::fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    auto discovery = make_file_discovery({.root = root_, .ttl = kTtl});
    if (!discovery.ok() || !(*discovery)->put(kRecord).ok()) ::_exit(1);
    (void)!::write(ready[1], "r", 1);
    for (;;) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ::close(ready[0]);
  ::close(ready[1]);
  auto survivor = open(kTtl);
  EXPECT_EQ(survivor->list(kInstancesBucket, "")->size(), 1U);
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  EXPECT_TRUE(eventually([&] { return !fs::exists(file()); }));
}

}  // namespace
}  // namespace dyn::runtime

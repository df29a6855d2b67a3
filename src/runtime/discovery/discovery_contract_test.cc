#include "runtime/discovery/discovery_contract.h"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>
#include <vector>

#include "base/ids.h"
#include "runtime/discovery/record_rules.h"

namespace dyn::runtime {

// For readable failures; found by argument-dependent lookup.
bool operator==(const Record& a, const Record& b) {
  return a.bucket == b.bucket && a.key == b.key && a.value == b.value;
}
void PrintTo(const Record& record, std::ostream* out) {
  *out << record.bucket << "/" << record.key << " = " << record.value;
}

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<Record> list(Discovery& discovery, const std::string& bucket, const std::string& prefix = "") {
  auto records = discovery.list(bucket, prefix);
  EXPECT_TRUE(records.ok()) << records.error().message;
  return records.ok() ? *records : std::vector<Record>{};
}

TEST_P(DiscoveryContract, InstanceIdIsFixedNotZeroAndUnique) {
  auto a = store_->connect();
  auto b = store_->connect();
  EXPECT_NE(a->instance_id(), 0U);
  EXPECT_EQ(a->instance_id(), a->instance_id());
  EXPECT_NE(a->instance_id(), b->instance_id());
}

TEST_P(DiscoveryContract, RecordsAreSeenByAllUntilRemoved) {
  auto a = store_->connect();
  auto b = store_->connect();
  const Record record{kInstancesBucket, "dynamo/backend/generate/1f", R"({"type":"Endpoint"})"};
  ASSERT_TRUE(a->put(record).ok());
  EXPECT_THAT(list(*a, kInstancesBucket), ElementsAre(record));
  EXPECT_THAT(list(*b, kInstancesBucket), ElementsAre(record));
  EXPECT_THAT(list(*b, kModelCardsBucket), IsEmpty());
  ASSERT_TRUE(a->remove(record.bucket, record.key).ok());
  EXPECT_THAT(list(*b, kInstancesBucket), IsEmpty());
  EXPECT_TRUE(a->remove(record.bucket, record.key).ok()) << "a key that is not there is no error";
}

TEST_P(DiscoveryContract, ListIsSortedAndFilteredByPrefix) {
  auto a = store_->connect();
  for (const char* key : {"n/c/b/2", "n/c/a/1", "n/d/a/1", "n/c/b/1"}) {
    ASSERT_TRUE(a->put({kInstancesBucket, key, "{}"}).ok());
  }
  const auto all = list(*a, kInstancesBucket);
  std::vector<std::string> keys;
  for (const auto& record : all) keys.push_back(record.key);
  EXPECT_THAT(keys, ElementsAre("n/c/a/1", "n/c/b/1", "n/c/b/2", "n/d/a/1"));
  EXPECT_EQ(list(*a, kInstancesBucket, "n/c/b/").size(), 2U);
  EXPECT_EQ(list(*a, kInstancesBucket, "n/c/").size(), 3U);
  EXPECT_THAT(list(*a, kInstancesBucket, "x"), IsEmpty());
}

TEST_P(DiscoveryContract, PutAgainReplacesAnOwnRecord) {
  auto a = store_->connect();
  ASSERT_TRUE(a->put({kInstancesBucket, "k", "1"}).ok());
  ASSERT_TRUE(a->put({kInstancesBucket, "k", "2"}).ok());
  EXPECT_THAT(list(*a, kInstancesBucket), ElementsAre(Record{kInstancesBucket, "k", "2"}));
}

TEST_P(DiscoveryContract, SomebodyElsesRecordIsLeftAlone) {
  auto a = store_->connect();
  auto b = store_->connect();
  ASSERT_TRUE(a->put({kInstancesBucket, "k", "a"}).ok());
  const auto second = b->put({kInstancesBucket, "k", "b"});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, Code::kAlreadyExists);
  (void)b->remove(kInstancesBucket, "k");
  b->close();
  EXPECT_THAT(list(*a, kInstancesBucket), ElementsAre(Record{kInstancesBucket, "k", "a"}));
}

TEST_P(DiscoveryContract, CloseRemovesOwnRecordsOnly) {
  auto a = store_->connect();
  auto b = store_->connect();
  ASSERT_TRUE(a->put({kInstancesBucket, "a", "1"}).ok());
  ASSERT_TRUE(a->put({kModelCardsBucket, "a", "1"}).ok());
  ASSERT_TRUE(b->put({kInstancesBucket, "b", "1"}).ok());
  a->close();
  a->close();
  EXPECT_THAT(list(*b, kInstancesBucket), ElementsAre(Record{kInstancesBucket, "b", "1"}));
  EXPECT_THAT(list(*b, kModelCardsBucket), IsEmpty());
  EXPECT_FALSE(a->put({kInstancesBucket, "a", "1"}).ok()) << "nothing is published after close";
  EXPECT_THAT(list(*b, kInstancesBucket, "a"), IsEmpty());
}

TEST_P(DiscoveryContract, DestructionCloses) {
  auto a = store_->connect();
  {
    auto b = store_->connect();
    ASSERT_TRUE(b->put({kInstancesBucket, "b", "1"}).ok());
  }
  EXPECT_THAT(list(*a, kInstancesBucket), IsEmpty());
}

TEST_P(DiscoveryContract, AnyBytesInKeyAndValue) {
  auto a = store_->connect();
  const Record odd{kModelCardsBucket, "n s/co-mp_1/ge.n/1f/my%lora/\xc3\xa9/../x",
                   std::string("{\"a\":\"\0\n\xff\"}", 11)};
  ASSERT_TRUE(a->put(odd).ok());
  EXPECT_THAT(list(*a, kModelCardsBucket), ElementsAre(odd));
  EXPECT_THAT(list(*a, kModelCardsBucket, "n s/co-mp_1/"), ElementsAre(odd));
  ASSERT_TRUE(a->remove(odd.bucket, odd.key).ok());
  EXPECT_THAT(list(*a, kModelCardsBucket), IsEmpty());
}

TEST_P(DiscoveryContract, SizeLimitIsExact) {
  auto a = store_->connect();
  EXPECT_TRUE(a->put({kModelCardsBucket, "k", std::string(kMaxRecordBytes, 'x')}).ok());
  EXPECT_EQ(list(*a, kModelCardsBucket).at(0).value.size(), kMaxRecordBytes);
  const auto over = a->put({kModelCardsBucket, "l", std::string(kMaxRecordBytes + 1, 'x')});
  ASSERT_FALSE(over.ok());
  EXPECT_EQ(over.error().code, Code::kInvalidArgument);
}

TEST_P(DiscoveryContract, BadNamesAreRefused) {
  auto a = store_->connect();
  for (const char* bucket : {"", "/v1", "v1/", "v1//mdc", "../etc", "v1/../..", "v1/m dc", "."}) {
    EXPECT_EQ(a->put({bucket, "k", "{}"}).error().code, Code::kInvalidArgument) << bucket;
    EXPECT_FALSE(a->list(bucket, "").ok()) << bucket;
    EXPECT_FALSE(a->remove(bucket, "k").ok()) << bucket;
  }
  EXPECT_EQ(a->put({kInstancesBucket, "", "{}"}).error().code, Code::kInvalidArgument);
}

TEST_P(DiscoveryContract, UsableFromManyThreads) {
  auto a = store_->connect();
  auto b = store_->connect();
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Discovery& discovery = t % 2 == 0 ? *a : *b;
      for (int i = 0; i < 20; ++i) {
        const std::string key = "n/c/e/" + to_hex(static_cast<uint64_t>(t));
        if (!discovery.put({kInstancesBucket, key, std::to_string(i)})) ++failures;
        if (!discovery.list(kInstancesBucket, "n/")) ++failures;
        if (i % 3 == 0 && !discovery.remove(kInstancesBucket, key)) ++failures;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(list(*a, kInstancesBucket).size(), 4U);
}

TEST_P(DiscoveryContract, CloseWhileOthersPut) {
  auto a = store_->connect();
  auto b = store_->connect();
  std::thread writer([&] {
    for (int i = 0; a->put({kInstancesBucket, "k" + std::to_string(i), "{}"}).ok(); ++i) {
    }
  });
  while (list(*b, kInstancesBucket).empty()) std::this_thread::yield();
  a->close();
  writer.join();
  EXPECT_THAT(list(*b, kInstancesBucket), IsEmpty());
}

}  // namespace
}  // namespace dyn::runtime

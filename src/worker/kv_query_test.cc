// The expected texts are answers of official workers of Dynamo 1.0.2 and 1.5.1.
#include "worker/kv_query.h"

#include <gtest/gtest.h>

namespace dyn::worker {
namespace {

using llm::Codec;
using llm::RouterStored;

std::string json(const KvQueryAnswer& answer, KvAnswerForm form) {
  Buffer out;
  encode_kv_answer(out, Codec::kJson, answer, form);
  return std::string(as_text(out.view()));
}

TEST(KvQuery, ReadsWhatEveryReleaseSends) {
  const auto old = decode_kv_query(as_bytes(R"({"worker_id":5,"start_event_id":null,"end_event_id":7})"), Codec::kJson);
  ASSERT_TRUE(old) << old.error().message;
  EXPECT_EQ(old->worker_id, 5U);
  EXPECT_FALSE(old->start_event_id);
  EXPECT_EQ(old->end_event_id, 7U);
  const auto newer = decode_kv_query(as_bytes(R"({"worker_id":5,"dp_rank":0,"start_event_id":3,"end_event_id":null,)"
                                              R"("supports_tree_dump_failed":true,"kind":"recovery"})"),
                                     Codec::kJson);
  ASSERT_TRUE(newer);
  EXPECT_EQ(newer->dp_rank, 0U);
  EXPECT_EQ(newer->start_event_id, 3U);
  EXPECT_TRUE(newer->is_recovery);
  const auto other = decode_kv_query(as_bytes(R"({"worker_id":5,"kind":{"status":{}}})"), Codec::kJson);
  ASSERT_TRUE(other);
  EXPECT_FALSE(other->is_recovery);
}

TEST(KvQuery, BadQueriesAreErrors) {
  for (const char* body : {"", "[]", "{", R"({"worker_id":-1})", R"({"worker_id":"x"})", R"({"start_event_id":1.5})"}) {
    EXPECT_FALSE(decode_kv_query(as_bytes(body), Codec::kJson)) << body;
    EXPECT_FALSE(decode_kv_query(as_bytes(body), Codec::kMsgpack)) << body;
  }
}

TEST(KvQuery, AnswersOfAnEmptyWorker) {
  const KvQueryAnswer empty{.value = KvTreeDump{}, .last_event_id = 0};
  EXPECT_EQ(json(empty, KvAnswerForm::kList), R"({"data":{"TreeDump":[]},"complete_final":false})");
  EXPECT_EQ(json(empty, KvAnswerForm::kStruct),
            R"({"data":{"TreeDump":{"events":[],"last_event_id":0}},"complete_final":false})");
  EXPECT_EQ(json(empty, KvAnswerForm::kStructReset),
            R"({"data":{"TreeDump":{"events":[],"last_event_id":0,"reset_scope":"all"}},"complete_final":false})");
}

TEST(KvQuery, AnswersWithEvents) {
  const KvQueryAnswer range{
      .value = KvEventRange{{{.worker_id = 7587890459949987073,
                              .event_id = 1,
                              .data = RouterStored{.parent = {},
                                                   .blocks = {{14643705804678351452U, 14643705804678351452U}}}}}},
      .last_event_id = 1};
  EXPECT_EQ(json(range, KvAnswerForm::kList),
            R"({"data":{"Events":[{"worker_id":7587890459949987073,"event":{"event_id":1,"data":{"stored":)"
            R"({"parent_hash":null,"blocks":[{"block_hash":14643705804678351452,"tokens_hash":14643705804678351452,)"
            R"("mm_extra_info":null}]}},"dp_rank":0}}]},"complete_final":false})");
  Buffer msgpack;
  encode_kv_answer(msgpack, Codec::kMsgpack, range, KvAnswerForm::kStructReset);
  EXPECT_NE(as_text(msgpack.view()).find("residency_domain"), std::string_view::npos);
}

TEST(KvQuery, AnswersWithoutEvents) {
  EXPECT_EQ(json({.value = KvTooNew{9, {}}, .last_event_id = 4}, KvAnswerForm::kStruct),
            R"({"data":{"TooNew":{"requested_start":9,"requested_end":null,"newest_available":4}},)"
            R"("complete_final":false})");
  EXPECT_EQ(json({.value = KvInvalidRange{5, 3}, .last_event_id = 4}, KvAnswerForm::kList),
            R"({"data":{"InvalidRange":{"start_id":5,"end_id":3}},"complete_final":false})");
  Buffer out;
  encode_kv_query_error(out, Codec::kJson, "no such rank");
  EXPECT_EQ(as_text(out.view()), R"({"data":{"Error":"no such rank"},"complete_final":false})");
}

}  // namespace
}  // namespace dyn::worker

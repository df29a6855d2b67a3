// A KV router's recovery query in both codecs, against a log that has something to tell.
#include "fuzz.h"
#include "worker/kv_query.h"

using namespace dyn;
using fuzz::expect;

namespace {

worker::KvEventLog make_log() {
  worker::KvEventLog log({.worker_id = 1, .dp_rank = 0});
  std::vector<llm::RouterEvent> out;
  for (llm::BlockHash hash = 1; hash <= 40; ++hash) {
    llm::KvBlocksStored stored;
    if (hash % 4 != 1) stored.parent = hash - 1;
    stored.blocks = {hash};
    stored.tokens = {static_cast<llm::TokenId>(hash)};
    stored.block_size = 1;
    log.apply(stored, out);
  }
  return log;
}

}  // namespace

DYN_FUZZ_TARGET(Bytes in) {
  static const worker::KvEventLog log = make_log();
  for (const auto codec : {llm::Codec::kJson, llm::Codec::kMsgpack}) {
    const auto query = worker::decode_kv_query(in, codec);
    if (!query) {
      expect(!query.error().message.empty());
      continue;
    }
    for (const auto form :
         {worker::KvAnswerForm::kList, worker::KvAnswerForm::kStruct, worker::KvAnswerForm::kStructReset}) {
      Buffer answer;
      worker::encode_kv_answer(answer, codec, log.answer(query->start_event_id, query->end_event_id), form);
      expect(!answer.empty());
    }
  }
}

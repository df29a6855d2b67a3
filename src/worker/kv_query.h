// Recovery queries: how a KV router asks for the events it missed, and how it is answered.
//
//   auto query = decode_kv_query(request.payload, codec);
//   encode_kv_answer(out, codec, log.answer(query->start_event_id, query->end_event_id), KvAnswerForm::kStruct);
//
// An answer is one item whose data is the answer itself, without the layer that items of `generate` have. Three forms
// of it exist, and a router reads only its own: kList up to 1.0, kStruct from 1.1 on, kStructReset from 1.4 on. Facts:
// lib/llm/src/kv_router/worker_query.rs, lib/kv-router/src/indexer/types.rs. Thread rules: plain functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/buffer.h"
#include "base/result.h"
#include "llm/request.h"
#include "worker/kv_event_log.h"

namespace dyn::worker {

struct KvQuery {
  std::optional<uint64_t> worker_id;
  std::optional<uint32_t> dp_rank;  // 1.3 and later
  std::optional<uint64_t> start_event_id;
  std::optional<uint64_t> end_event_id;
  bool is_recovery = true;  // 1.5: there are other kinds, for other components
};
Result<KvQuery> decode_kv_query(Bytes body, llm::Codec codec);

enum class KvAnswerForm : uint8_t { kList, kStruct, kStructReset };

void encode_kv_answer(Buffer& out, llm::Codec codec, const KvQueryAnswer& answer, KvAnswerForm form);
void encode_kv_query_error(Buffer& out, llm::Codec codec, std::string_view message);

}  // namespace dyn::worker

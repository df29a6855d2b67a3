// A request's body in msgpack, and the reader on its own with values of any kind.
#include "fuzz.h"
#include "llm/request.h"
#include "wire/json_reader.h"
#include "wire/msgpack_reader.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  const llm::RequestLimits limits{.max_tokens = 10000};
  const auto request = llm::decode_request(in, llm::Codec::kMsgpack, limits);
  if (request) expect(request->token_ids.size() <= limits.max_tokens);

  wire::MsgpackReader skipping(in);
  const bool skipped = skipping.skip() && skipping.finish().ok();
  expect(skipped || !request.ok());

  // What has a JSON form is valid JSON and packs into a document that is at most as long.
  wire::MsgpackReader reader(in);
  Buffer json;
  if (!reader.append_json(json) || !reader.finish()) return;
  expect(skipped);
  wire::JsonReader back(json.view());
  Buffer packed;
  expect(back.append_msgpack(packed) && back.finish().ok());
}

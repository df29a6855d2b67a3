// A request's body in JSON. What JSON says has to be what the same values say in msgpack.
#include "fuzz.h"
#include "llm/request.h"
#include "wire/json_reader.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  const llm::RequestLimits limits{.max_tokens = 10000};
  const auto request = llm::decode_request(in, llm::Codec::kJson, limits);
  if (!request) expect(!request.error().message.empty());

  wire::JsonReader reader(in);
  Buffer packed;
  if (!reader.append_msgpack(packed)) {
    expect(!request.ok());
    return;
  }
  const auto same = llm::decode_request(packed.view(), llm::Codec::kMsgpack, limits);
  expect(same.ok() == request.ok());
  if (!request) return;
  expect(request->token_ids.size() <= limits.max_tokens);
  expect(same->token_ids == request->token_ids && same->model == request->model &&
         same->stop.max_tokens == request->stop.max_tokens && same->sampling.seed == request->sampling.seed &&
         same->sampling.temperature == request->sampling.temperature && same->stop.stop == request->stop.stop);
}

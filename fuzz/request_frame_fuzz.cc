// The request frame as it arrives on a TCP connection, in one piece and in two; with it the headers' JSON.
#include "fuzz.h"
#include "wire/frame.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  const wire::RequestFrameLimits limits{.max_frame_bytes = 4096};
  wire::RequestFrame frame;
  const wire::FrameStep step = wire::decode_request_frame(in, limits, frame);
  if (step.state == wire::FrameState::kNeedMore) {
    expect(step.size > in.size() && step.size <= limits.max_frame_bytes);
    return;
  }
  if (step.state == wire::FrameState::kError) {
    expect(!step.error.message.empty());
    return;
  }
  expect(step.size <= in.size() && step.size <= limits.max_frame_bytes);

  wire::RequestFrame again;
  expect(wire::decode_request_frame(in.first(step.size - 1), limits, again).state == wire::FrameState::kNeedMore);

  const auto headers = wire::decode_frame_headers(frame.headers);
  Buffer out;
  expect(wire::encode_request_frame(out, frame.path, headers, frame.payload).ok() || !headers.empty());

  std::string_view text;
  const wire::FrameStep ack = wire::decode_ack(in, text);
  if (ack.state == wire::FrameState::kFrame) expect(ack.size == text.size() + 4);
}

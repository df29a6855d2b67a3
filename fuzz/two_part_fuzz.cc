// Two-part messages on a response connection: the framing, control frames, handshake and prologue.
#include "fuzz.h"
#include "wire/call_home.h"
#include "wire/two_part.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  const wire::TwoPartLimits limits{.max_header_bytes = 1024, .max_message_bytes = 4096};
  while (true) {
    wire::TwoPart part;
    const wire::FrameStep step = wire::decode_two_part(in, limits, part);
    if (step.state == wire::FrameState::kNeedMore) {
      expect(step.size > in.size() && step.size <= limits.max_message_bytes);
      return;
    }
    if (step.state == wire::FrameState::kError) return;
    expect(step.size == wire::kTwoPartPrefixBytes + part.header.size() + part.data.size() && step.size <= in.size());

    Buffer again;
    wire::encode_two_part(again, part.header, part.data);
    wire::TwoPart second;
    expect(wire::decode_two_part(again.view(), limits, second).size == step.size);
    expect(as_text(second.header) == as_text(part.header) && as_text(second.data) == as_text(part.data));

    (void)wire::decode_control(part);
    if (auto handshake = wire::decode_handshake(part)) expect(!handshake->subject.empty());
    (void)wire::decode_prologue(part);
    in = in.subspan(step.size);
  }
}

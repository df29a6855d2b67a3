// An event message's frame; what was read is written back the same.
#include "fuzz.h"
#include "wire/event_envelope.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  (void)wire::decode_event_envelope(in);
  const auto envelope = wire::read_event_frame(in);
  if (!envelope) return;
  Buffer out;
  wire::append_event_frame(out, *envelope);
  const auto again = wire::read_event_frame(out.view());
  expect(again.ok() && again->publisher_id == envelope->publisher_id && again->sequence == envelope->sequence &&
         again->topic == envelope->topic && as_text(again->payload) == as_text(envelope->payload));
}

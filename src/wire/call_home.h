// What is said on a response connection besides items: handshake, prologue, control frames. All header-only two-part
// messages, always JSON, whatever the payload codec.
//
//   worker -> caller: handshake, prologue, items..., complete-final, "sentinel"
//   caller -> worker: "stop" (end soon) or "kill" (nobody reads any more)
//
//   encode_handshake(out, control.connection.subject, "response");
//   encode_prologue(out);                       // accepted
//   encode_prologue(out, "out of memory");      // refused
//   switch (decode_control(part)) { case ControlWord::kKill: ... }
//
// Facts: lib/runtime/src/pipeline/network/tcp of Dynamo 0.8 ... 1.6. Thread rules: plain functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/buffer.h"
#include "base/result.h"
#include "wire/two_part.h"

namespace dyn::wire {

enum class ControlWord : uint8_t {
  kUnknown,   // anything else: to be ignored
  kStop,      // the caller wants no more tokens, what exists may still be sent
  kKill,      // the caller reads nothing any more
  kSentinel,  // the worker's last frame
};

void encode_handshake(Buffer& out, std::string_view subject, std::string_view stream_type);
void encode_prologue(Buffer& out);                          // {"error":null}
void encode_prologue(Buffer& out, std::string_view error);  // {"error":"..."}
void encode_control(Buffer& out, ControlWord word);         // kUnknown appends nothing
ControlWord decode_control(const TwoPart& part);

// The caller's side.
struct Handshake {
  std::string subject;
  std::string stream_type;
};
Result<Handshake> decode_handshake(const TwoPart& part);

struct Prologue {
  bool refused = false;
  std::string error;
};
Result<Prologue> decode_prologue(const TwoPart& part);

}  // namespace dyn::wire

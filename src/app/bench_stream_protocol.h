// The caller's side of `generate` as far as a benchmark needs it: requests, where to send them, and a scanner that
// takes token ids out of stream items without decoding them.
//
//   Buffer out;
//   append_request(out, target, call);
//   ItemView item = scan_item(part.data, target.codec);     // item.token_count, item.last_token, ...
//
// Framing is wire/'s. The scanner is written apart from the item encoders on purpose: a mistake there must not cancel
// itself out here. Thread rules: plain functions.
// Facts: Dynamo 0.8 ... 1.6 (lib/runtime/src/pipeline/network, lib/llm/src/protocols/common/preprocessor.rs).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/result.h"
#include "wire/control_message.h"
#include "wire/two_part.h"

namespace dyn::app::bench {

using Codec = wire::PayloadCodec;

// Where a worker's endpoint listens, as its instance record says.
struct Target {
  std::string host;  // IPv4 literal
  uint16_t port = 0;
  std::string path;  // routing path: what follows the first '/' of the record's address
  Codec codec = Codec::kJson;
};

// "127.0.0.1:40123/694d9b7a3c1e5f02/generate"
Result<Target> parse_target(std::string_view address);

struct InstanceFilter {
  std::string ns;         // empty: any
  std::string component;  // empty: any
  std::string endpoint = "generate";
};

// The TCP endpoints that match among the instance records of a file store (`root` holds v1/instances). A record that
// cannot be read is skipped, as frontends do.
std::vector<Target> read_instances(const std::string& root, const InstanceFilter& filter);

// One call of `generate`.
struct Call {
  unsigned stream = 0;
  std::string model;
  uint32_t prompt_tokens = 16;
  uint32_t max_tokens = 0;
  std::string call_home;  // "127.0.0.1:port" of the caller's listener
};

// The subject names the stream, so that a handshake finds it without a table.
std::string subject_of(unsigned stream);
Result<unsigned> stream_of_subject(std::string_view subject);

// Appends the request frame of one call.
Result<void> append_request(Buffer& out, const Target& target, const Call& call);

// What a scan found in one stream item.
struct ItemView {
  uint32_t token_count = 0;
  uint32_t first_token = 0;
  uint32_t last_token = 0;
  size_t token_at = 0;     // place of the first token id in the item
  size_t token_bytes = 0;  // its length: JSON digits, msgpack integer
  bool final = false;      // {"complete_final":true}
};
ItemView scan_item(Bytes item, Codec codec);

// A captured item with the token id exchanged, so that a bare send loop writes the very bytes a worker would.
class FrameTemplate {
 public:
  // `item`: an item with exactly one token, without the two-part prefix. Error when it has none.
  static Result<FrameTemplate> from_item(Bytes item, Codec codec);

  // Writes the frame, prefix included, and returns its length; `out` has room for max_bytes().
  size_t render(std::byte* out, uint32_t token) const;
  [[nodiscard]] size_t max_bytes() const { return wire::kTwoPartPrefixBytes + head_.size() + 10 + tail_.size(); }
  [[nodiscard]] Codec codec() const { return codec_; }

 private:
  Codec codec_ = Codec::kJson;
  std::string head_;
  std::string tail_;
};

// Time stamps as token ids: microseconds of CLOCK_MONOTONIC modulo 2^31 (they wrap after 35 minutes). A stamping engine
// gives these ids, the sink subtracts them from its own.
inline constexpr uint32_t kStampModulus = 1U << 31;
uint32_t stamp_now();
// later - earlier, right across a wrap as long as they are less than 17 minutes apart.
inline int32_t stamp_distance_us(uint32_t later, uint32_t earlier) {
  return static_cast<int32_t>((later - earlier) << 1) >> 1;
}

}  // namespace dyn::app::bench

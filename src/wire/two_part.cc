#include "wire/two_part.h"

namespace dyn::wire {
namespace {

FrameStep bad(std::string message) {
  return {FrameState::kError, 0, invalid_argument(std::move(message))};
}

}  // namespace

FrameStep decode_two_part(Bytes in, const TwoPartLimits& limits, TwoPart& part) {
  if (in.size() < kTwoPartPrefixBytes) return {FrameState::kNeedMore, kTwoPartPrefixBytes, {}};
  const auto header_bytes = load_be<uint64_t>(in.data());
  const auto data_bytes = load_be<uint64_t>(in.data() + 8);

  // Written so that no sum of a peer's numbers is formed before it is known to be small.
  const uint64_t room = limits.max_message_bytes - std::min<uint64_t>(limits.max_message_bytes, kTwoPartPrefixBytes);
  if (header_bytes > limits.max_header_bytes) {
    return bad("a header of " + std::to_string(header_bytes) + " bytes is larger than the limit of " +
               std::to_string(limits.max_header_bytes));
  }
  if (header_bytes > room || data_bytes > room - header_bytes) {
    return bad("a header of " + std::to_string(header_bytes) + " and data of " + std::to_string(data_bytes) +
               " bytes are larger than the limit of " + std::to_string(limits.max_message_bytes));
  }

  const size_t size = kTwoPartPrefixBytes + header_bytes + data_bytes;
  if (in.size() < size) return {FrameState::kNeedMore, size, {}};
  part.header = in.subspan(kTwoPartPrefixBytes, header_bytes);
  part.data = in.subspan(kTwoPartPrefixBytes + header_bytes, data_bytes);
  return {FrameState::kFrame, size, {}};
}

Result<TwoPart> decode_whole_two_part(Bytes in, const TwoPartLimits& limits) {
  TwoPart part;
  const FrameStep step = decode_two_part(in, limits, part);
  if (step.state == FrameState::kError) return step.error;
  if (step.state == FrameState::kNeedMore) {
    return invalid_argument("the message has " + std::to_string(in.size()) + " of at least " +
                            std::to_string(step.size) + " bytes");
  }
  if (step.size != in.size()) {
    return invalid_argument(std::to_string(in.size() - step.size) + " bytes behind the message");
  }
  return part;
}

void encode_two_part(Buffer& out, Bytes header, Bytes data) {
  std::byte* prefix = out.extend(kTwoPartPrefixBytes);
  store_be<uint64_t>(prefix, header.size());
  store_be<uint64_t>(prefix + 8, data.size());
  store_be<uint64_t>(prefix + 16, 0);
  out.append(header);
  out.append(data);
}

}  // namespace dyn::wire

#include "llm/router_event.h"

#include "wire/msgpack_writer.h"

namespace dyn::llm {
namespace {

using wire::pack_array;
using wire::pack_map;
using wire::pack_nil;
using wire::pack_str;
using wire::pack_uint;

void encode_data(Buffer& out, const RouterStored& stored, RouterEventForm form) {
  const bool has_position = form == RouterEventForm::kEndpoint;
  pack_map(out, 1);
  pack_str(out, "stored");
  pack_map(out, has_position ? 3 : 2);
  pack_str(out, "parent_hash");
  if (stored.parent) {
    pack_uint(out, *stored.parent);
  } else {
    pack_nil(out);
  }
  if (has_position) {
    pack_str(out, "start_position");
    pack_nil(out);
  }
  pack_str(out, "blocks");
  pack_array(out, stored.blocks.size());
  for (const RouterBlock& block : stored.blocks) {
    pack_map(out, 3);
    pack_str(out, "block_hash");
    pack_uint(out, block.block_hash);
    pack_str(out, "tokens_hash");
    pack_uint(out, block.tokens_hash);
    pack_str(out, "mm_extra_info");
    pack_nil(out);
  }
}

void encode_data(Buffer& out, const KvBlocksRemoved& removed, RouterEventForm) {
  pack_map(out, 1);
  pack_str(out, "removed");
  pack_map(out, 1);
  pack_str(out, "block_hashes");
  pack_array(out, removed.blocks.size());
  for (const BlockHash hash : removed.blocks) pack_uint(out, hash);
}

void encode_data(Buffer& out, const KvCleared&, RouterEventForm) {
  pack_str(out, "cleared");
}

}  // namespace

void encode_router_event(Buffer& out, const RouterEvent& event, RouterEventForm form) {
  const bool has_tier = form == RouterEventForm::kEndpoint;
  pack_map(out, has_tier ? 4 : 2);
  pack_str(out, "worker_id");
  pack_uint(out, event.worker_id);
  if (has_tier) {
    pack_str(out, "storage_tier");
    pack_str(out, "device");
    pack_str(out, "residency_domain");
    pack_str(out, "worker");
  }
  pack_str(out, "event");
  pack_map(out, 3);
  pack_str(out, "event_id");
  pack_uint(out, event.event_id);
  pack_str(out, "data");
  std::visit([&](const auto& data) { encode_data(out, data, form); }, event.data);
  pack_str(out, "dp_rank");
  pack_uint(out, event.dp_rank);
}

}  // namespace dyn::llm

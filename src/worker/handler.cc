#include "worker/handler.h"

#include <fmt/format.h>

#include <utility>

#include "worker/aggregated_handler.h"

namespace dyn::worker {

std::string_view to_string(Role role) {
  switch (role) {
    case Role::kAggregated:
      return "aggregated";
    case Role::kPrefill:
      return "prefill";
    case Role::kDecode:
      return "decode";
    case Role::kEncode:
      return "encode";
  }
  return "unknown";
}

HandlerFactory HandlerFactory::with_built_in_roles() {
  HandlerFactory factory;
  factory.register_handler(Role::kAggregated,
                           [](const HandlerContext& context) { return std::make_unique<AggregatedHandler>(context); });
  return factory;
}

void HandlerFactory::register_handler(Role role, Maker maker) {
  makers_[role] = std::move(maker);
}

Result<std::unique_ptr<RequestHandler>> HandlerFactory::create(Role role, const HandlerContext& context) const {
  const auto found = makers_.find(role);
  if (found != makers_.end()) return found->second(context);
  std::string known;
  for (const auto& [other, maker] : makers_) known += (known.empty() ? "" : ", ") + std::string(to_string(other));
  return unsupported(fmt::format("the {} role is not built into this worker (there is: {})", to_string(role), known));
}

}  // namespace dyn::worker

// RequestHandler: what a worker of one role does with a request, and HandlerFactory: role -> handler.
//
//   HandlerFactory factory = HandlerFactory::with_built_in_roles();
//   factory.register_handler(Role::kPrefill, [](const HandlerContext& c) { return std::make_unique<MyHandler>(c); });
//   auto handler = factory.create(Role::kAggregated, context);
//   plane->add_endpoint(id, instance_id, [&](auto request, auto stream) { (*handler)->handle(std::move(request), ...);
//   });
//
// The counterpart of the original's RequestHandlerFactory. Ownership: the context's references outlive the handler.
// Thread rules: handle() is called on any net loop, also on several at once; everything else from the control thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "engine/engine.h"
#include "runtime/request_plane/request_plane.h"
#include "worker/dispatcher.h"
#include "worker/request_policy.h"

namespace dyn::worker {

enum class Role : uint8_t { kAggregated, kPrefill, kDecode, kEncode };
std::string_view to_string(Role role);

struct HandlerContext {
  engine::Engine& engine;
  Dispatcher& dispatcher;
  RequestPolicy policy;
};

class RequestHandler {
 public:
  virtual ~RequestHandler() = default;
  // Must not block or throw. The stream ends in every case.
  virtual void handle(runtime::IncomingRequest request, std::shared_ptr<runtime::ResponseStream> stream) = 0;
};

class HandlerFactory {
 public:
  using Maker = std::function<std::unique_ptr<RequestHandler>(const HandlerContext& context)>;

  // Aggregated. The other roles are refused by create() until somebody registers them.
  static HandlerFactory with_built_in_roles();

  // Replaces an earlier registration of the role.
  void register_handler(Role role, Maker maker);

  // kUnsupported names the role and those that exist.
  [[nodiscard]] Result<std::unique_ptr<RequestHandler>> create(Role role, const HandlerContext& context) const;

 private:
  std::map<Role, Maker> makers_;
};

}  // namespace dyn::worker

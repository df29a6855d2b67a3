// TcpOptions: what the TCP request plane can be told. The defaults are Dynamo's; beside each member stands the variable
// that the application fills it from.
//
//   TcpOptions options;
//   options.port = 9345;
//   auto plane = make_tcp_request_plane(options, loops, registry);
//
// Facts: lib/runtime/src/pipeline/network/{manager.rs,ingress/shared_tcp_endpoint.rs} of Dynamo 0.8 ... 1.6. Thread
// rules: plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/request_plane/admission.h"
#include "runtime/request_plane/call_home.h"

namespace dyn::runtime {

struct TcpOptions {
  std::string host;                             // DYN_TCP_RPC_HOST; empty: net::local_address()
  uint16_t port = 0;                            // DYN_TCP_RPC_PORT; 0: the operating system chooses
  size_t max_message_bytes = 32 * 1024 * 1024;  // DYN_TCP_MAX_MESSAGE_SIZE: one whole request frame
  int listen_backlog = 1024;                    // DYN_TCP_LISTEN_BACKLOG
  AdmissionLimits admission;                    // DYN_ENGINE_REQUEST_LIMIT, DYN_DYNAMO_REQUEST_QUEUE_LIMIT
  CallHomeOptions call_home;
};

}  // namespace dyn::runtime

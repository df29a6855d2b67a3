// The TCP request plane: one listener for all endpoints of the process; callers send request frames (wire/frame.h) and
// get one acknowledgement each; responses go by connections of their own, dialled back to the caller.
//
//   auto plane = make_tcp_request_plane({.host = "10.0.0.7"}, loops, registry);
//   if (auto started = plane->start(); !started) return started.error();
//
// Connections are spread over the loops and never closed for being idle: official callers open dozens when they
// discover the instance and may be silent for as long as they like. Ownership: `loops` (running) and `registry` must
// outlive the plane. Thread rules: as RequestPlane. Facts:
// lib/runtime/src/pipeline/network/ingress/shared_tcp_endpoint.rs.
#pragma once

#include <memory>

#include "base/metrics.h"
#include "net/event_loop.h"
#include "runtime/request_plane/request_plane.h"
#include "runtime/request_plane/tcp_options.h"

namespace dyn::runtime {

std::unique_ptr<RequestPlane> make_tcp_request_plane(const TcpOptions& options, net::LoopPool& loops,
                                                     metrics::Registry& registry);

}  // namespace dyn::runtime

// The address other hosts reach this one at.
//
//   std::string host = net::local_address();   // "10.0.0.7"
//
// Dynamo binds and advertises one concrete IP literal: the routable IPv4 address, else IPv6, else 127.0.0.1
// (lib/runtime of Dynamo 0.8 ... 1.6). Thread rules: safe from any thread; one or two system calls, no packet is sent.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace dyn::net {

std::string local_address();

// The IP literal behind a literal or a host name. May block on a name server.
Result<std::string> resolve_host(const std::string& host);

// "10.0.0.7:80", "[fe80::1]:80"
std::string host_port(const std::string& ip_literal, uint16_t port);

// "0.0.0.0" or "::": good for binding, useless to advertise.
bool is_wildcard(const std::string& ip_literal);

}  // namespace dyn::net

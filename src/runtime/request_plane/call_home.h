// The limits of a response stream that is dialled back to the caller ("call home"), whichever request plane brought the
// request. See response_stream.h for the stream itself. Thread rules: plain values.
#pragma once

#include <chrono>
#include <cstddef>

namespace dyn::runtime {

struct CallHomeOptions {
  // What may wait for a slow reader before the stream reports kTooSlow. One item may exceed it: an item is never cut.
  size_t max_buffered_bytes = 4 * 1024 * 1024;
  // Room beyond that for what the owner writes before it hears the report, and for its last words (an error item and
  // the final frame); then the stream is cut off.
  size_t last_words_bytes = 256 * 1024;
  std::chrono::milliseconds connect_timeout{5'000};
  // While this host has no free port (EADDRNOTAVAIL) the dial is tried again, as official workers do.
  std::chrono::milliseconds port_retry_interval{200};
  std::chrono::milliseconds port_retry_limit{30'000};
  // How long a finished stream waits for the caller to close first, so that the caller's side keeps the TIME_WAIT.
  std::chrono::milliseconds close_wait{10'000};
  // A finished stream whose reader takes nothing for so long is cut off.
  std::chrono::milliseconds stall_limit{60'000};
};

}  // namespace dyn::runtime

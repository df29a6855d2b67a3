// The stream items the runtime itself writes: the complete-final frame, and errors that happen before a handler has
// seen the request. Errors of requests and of the engine are the handler's.
//
//   append_error_item(stream.begin_item(), codec, kWorkerAtCapacity);
//   stream.end_item();
//
// Facts: lib/runtime/src/pipeline/network.rs (wrapper), protocols/annotated.rs. An error carries the text twice, in
// `comment` for readers up to 0.9 and in `error` for the newer ones, and uses only error types that 1.0 knows: an
// unknown one makes the whole item unreadable. Thread rules: plain functions.
#pragma once

#include <string_view>

#include "base/buffer.h"
#include "wire/control_message.h"

namespace dyn::runtime {

struct ErrorItem {
  // Error type in Dynamo's externally tagged form: "Unknown", or {"Backend":"EngineShutdown"} when `backend` is set.
  std::string_view type;
  bool backend;
  std::string_view comment;
  std::string_view message;
};

// HTTP 503 in every frontend from 0.8.1 to 1.6.1: they look for a JSON object with a code in the text.
inline constexpr ErrorItem kWorkerAtCapacity = {"Unknown", false, R"({"message":"worker at capacity","code":503})",
                                                R"({"message":"worker at capacity","code":503})"};
// Makes every frontend try another worker: up to 0.9 by this very comment, later by the type.
inline constexpr ErrorItem kEngineShutdown = {"EngineShutdown", true, "Stream ended before generation completed",
                                              "engine shutting down"};

// The data of one item: {"data":{"event":"error",...},"complete_final":false}
void append_error_item(Buffer& out, wire::PayloadCodec codec, const ErrorItem& error);

// A whole frame: {"complete_final":true}
void append_final_frame(Buffer& out, wire::PayloadCodec codec);

}  // namespace dyn::runtime

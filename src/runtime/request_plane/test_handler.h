// A handler whose requests are served by the test's own thread, step by step.
//
//   TestHandler handler;
//   plane.add_endpoint(id, 7, handler.handler());
//   auto served = handler.next();               // waits for a request
//   served->item(R"({"data":{},"complete_final":false})");
//   EXPECT_TRUE(served->cancelled_by(CancelKind::kKill));
//   served->finish();
//
// Ownership: the handler and what it served must go before the loops. Thread rules: test thread; calls into the stream
// are made on its loop.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "net/event_loop.h"
#include "runtime/request_plane/request_plane.h"
#include "runtime/request_plane/test_frontend.h"
#include "wire/padding.h"

namespace dyn::runtime::testing {

class ServedRequest final : public ResponseStream::Observer {
 public:
  ServedRequest(IncomingRequest request, std::shared_ptr<ResponseStream> response_stream)
      : incoming(std::move(request)), body(as_text(incoming.payload)), stream(std::move(response_stream)) {
    // The promise to the parser: these bytes may be read.
    for (size_t i = 0; i < wire::kReadPadding; ++i) padding_ ^= incoming.payload.data()[incoming.payload.size() + i];
    incoming.payload = {};
    stream->set_observer(this);
  }
  ~ServedRequest() override { drop(); }

  // Runs `use` on the stream's loop.
  template <class Use>
  void on(Use use) {
    stream->loop().run_sync([&] {
      in_call_ = true;
      use(*stream);
      in_call_ = false;
    });
  }
  void accept() {
    on([](ResponseStream& s) { s.accept(); });
  }
  void item(std::string_view bytes) {
    on([&](ResponseStream& s) {
      s.begin_item().append(bytes);
      s.end_item();
      s.flush();
    });
  }
  void finish() {
    on([](ResponseStream& s) { s.finish(); });
  }
  void drop() {
    if (!stream) return;
    stream->loop().run_sync([&] {
      stream->set_observer(nullptr);
      stream.reset();
    });
  }

  void on_cancel(CancelKind kind) override {
    const std::lock_guard lock(mutex_);
    if (in_call_) reported_inside_a_call_ = true;
    if (!cancels_.insert(kind).second) reported_twice_ = true;
    changed_.notify_all();
  }
  // Waits for the report.
  bool cancelled_by(CancelKind kind, std::chrono::milliseconds timeout = kTestTimeout) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, timeout, [&] { return cancels_.contains(kind); });
  }
  std::set<CancelKind> cancels() {
    const std::lock_guard lock(mutex_);
    return cancels_;
  }
  // No report from inside a call into the stream, none twice.
  bool well_behaved() {
    const std::lock_guard lock(mutex_);
    return !reported_inside_a_call_ && !reported_twice_;
  }

  IncomingRequest incoming;  // without its payload
  std::string body;
  std::shared_ptr<ResponseStream> stream;

 private:
  std::byte padding_{};
  bool in_call_ = false;  // loop thread only
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<CancelKind> cancels_;
  bool reported_inside_a_call_ = false;
  bool reported_twice_ = false;
};

class TestHandler {
 public:
  RequestHandler handler() {
    return [this](IncomingRequest request, std::shared_ptr<ResponseStream> stream) {
      auto served = std::make_shared<ServedRequest>(std::move(request), std::move(stream));
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(served));
      changed_.notify_all();
    };
  }
  std::shared_ptr<ServedRequest> next(std::chrono::milliseconds timeout = kTestTimeout) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, timeout, [&] { return !queue_.empty(); })) throw TestTimeout("no request was served");
    auto served = std::move(queue_.front());
    queue_.pop_front();
    return served;
  }
  size_t waiting() {
    const std::lock_guard lock(mutex_);
    return queue_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<ServedRequest>> queue_;
};

}  // namespace dyn::runtime::testing

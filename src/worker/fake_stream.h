// For tests: a response stream that keeps what is written to it.
//
//   auto stream = std::make_shared<FakeStream>(loops.at(0));
//   handler.handle(request, stream);         // on that loop
//   EXPECT_THAT(stream->items, ElementsAre(...));
//
// Thread rules: those of ResponseStream; look at the members when the loop is at rest.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "net/event_loop.h"
#include "runtime/request_plane/response_stream.h"

namespace dyn::worker {

class FakeStream final : public runtime::ResponseStream {
 public:
  explicit FakeStream(net::EventLoop& loop) : loop_(loop) {}

  [[nodiscard]] net::EventLoop& loop() const override { return loop_; }
  void set_observer(Observer* observer) override { observer_ = observer; }
  void accept() override {}
  void refuse(std::string_view text) override { refused = text; }
  Buffer& begin_item() override {
    buffer_.clear();
    return buffer_;
  }
  void end_item() override { items.emplace_back(as_text(buffer_.view())); }
  void flush() override { ++flushes; }
  void finish() override { finished = true; }
  void abandon() override { abandoned = true; }
  [[nodiscard]] bool cancelled() const override { return false; }
  [[nodiscard]] size_t buffered_bytes() const override { return 0; }

  void cancel(runtime::CancelKind kind) {
    if (observer_ != nullptr) observer_->on_cancel(kind);
  }

  std::vector<std::string> items;
  std::string refused;
  int flushes = 0;
  bool finished = false;
  bool abandoned = false;

 private:
  net::EventLoop& loop_;
  Observer* observer_ = nullptr;
  Buffer buffer_;
};

}  // namespace dyn::worker

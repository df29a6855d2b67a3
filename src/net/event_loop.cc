#include "net/event_loop.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <cassert>
#include <cerrno>
#include <exception>
#include <future>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "base/log.h"
#include "base/threads.h"

namespace dyn::net {
namespace asio = boost::asio;

namespace {

// The loop and its users share it: the loop lets go of the descriptor at its end, the last user closes it.
class EventFdWaker final : public Waker {
 public:
  EventFdWaker(asio::io_context& context, std::function<void()> on_wake)
      : fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), on_wake_(std::move(on_wake)) {
    if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    descriptor_.emplace(context, fd_);
  }
  ~EventFdWaker() override {
    detach();
    ::close(fd_);
  }
  EventFdWaker(const EventFdWaker&) = delete;
  EventFdWaker& operator=(const EventFdWaker&) = delete;

  void wake() noexcept override {
    if (pending_.exchange(true, std::memory_order_acq_rel)) return;
    const uint64_t one = 1;
    while (::write(fd_, &one, sizeof one) < 0 && errno == EINTR) {
    }
  }

  // On the loop's thread.
  void arm() {
    descriptor_->async_wait(asio::posix::descriptor_base::wait_read,
                            [this](const boost::system::error_code& error) { on_readable(error); });
  }

  // Once the loop's thread is gone.
  void detach() {
    if (descriptor_) descriptor_->release();
    descriptor_.reset();
  }

 private:
  void on_readable(const boost::system::error_code& error) {
    if (error) return;
    uint64_t count = 0;
    (void)!::read(fd_, &count, sizeof count);
    // Cleared before the call: a wake from here on causes another call, one from before is covered by this one.
    pending_.exchange(false, std::memory_order_acq_rel);
    arm();
    on_wake_();
  }

  int fd_;
  std::optional<asio::posix::stream_descriptor> descriptor_;
  std::function<void()> on_wake_;
  std::atomic<bool> pending_ = false;
};

}  // namespace

struct EventLoop::Impl {
  explicit Impl(std::string thread_name) : name(std::move(thread_name)), work(context.get_executor()) {}

  void run() {
    set_thread_name(name);
    thread_id.store(std::this_thread::get_id(), std::memory_order_relaxed);
    // Handlers are written not to throw. One that does must not take the other streams of its loop with it.
    for (;;) {
      try {
        context.run();
        return;
      } catch (const std::exception& failure) {
        DYN_ERROR("net", "loop {}: a handler threw: {}", name, failure.what());
      }
    }
  }

  std::string name;
  asio::io_context context{1};  // one thread runs it
  asio::executor_work_guard<asio::io_context::executor_type> work;
  std::mutex wakers_mutex;
  std::vector<std::shared_ptr<EventFdWaker>> wakers;
  std::thread thread;
  std::atomic<std::thread::id> thread_id{};
};

EventLoop::EventLoop(unsigned index, std::string name)
    : index_(index), impl_(std::make_unique<Impl>(std::move(name))) {}

EventLoop::~EventLoop() {
  stop();
  for (auto& waker : impl_->wakers) waker->detach();
}

bool EventLoop::in_loop_thread() const {
  return impl_->thread_id.load(std::memory_order_relaxed) == std::this_thread::get_id();
}

asio::io_context& EventLoop::context() {
  return impl_->context;
}

void EventLoop::post(std::function<void()> work) {
  asio::post(impl_->context, std::move(work));
}

void EventLoop::run_sync(const std::function<void()>& work) {
  if (in_loop_thread() || !impl_->thread.joinable()) {
    work();
    return;
  }
  std::promise<void> done;
  asio::post(impl_->context, [&] {
    work();
    done.set_value();
  });
  done.get_future().wait();
}

std::shared_ptr<Waker> EventLoop::add_waker(std::function<void()> on_wake) {
  auto waker = std::make_shared<EventFdWaker>(impl_->context, std::move(on_wake));
  {
    std::lock_guard lock(impl_->wakers_mutex);
    impl_->wakers.push_back(waker);
  }
  asio::post(impl_->context, [raw = waker.get()] { raw->arm(); });
  return waker;
}

void EventLoop::start() {
  if (impl_->thread.joinable()) return;
  impl_->context.restart();
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
}

void EventLoop::stop() {
  assert(!in_loop_thread());
  if (!impl_->thread.joinable()) return;
  impl_->context.stop();
  impl_->thread.join();
  impl_->thread_id.store(std::thread::id(), std::memory_order_relaxed);
}

LoopPool::LoopPool(unsigned count, const std::string& name) {
  for (unsigned i = 0; i < std::max(count, 1U); ++i) {
    loops_.push_back(std::make_unique<EventLoop>(i, name + "-" + std::to_string(i)));
  }
}

LoopPool::~LoopPool() {
  stop();
}

void LoopPool::start() {
  for (auto& loop : loops_) loop->start();
}

void LoopPool::stop() {
  for (auto& loop : loops_) loop->stop();
}

EventLoop& LoopPool::next() {
  return *loops_[next_.fetch_add(1, std::memory_order_relaxed) % loops_.size()];
}

}  // namespace dyn::net

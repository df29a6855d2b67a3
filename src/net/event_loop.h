// EventLoop: one thread that runs one Asio io_context, and LoopPool: several of them.
//
//   net::LoopPool loops(4, "net");
//   loops.start();
//   loops.at(0).post([] { ... });          // runs on the loop's thread
//   auto mailbox = loops.at(0).add_waker([] { drain_ring(); });   // one eventfd write wakes it, however many entries
//   mailbox->wake();
//
// A socket belongs to one loop for life; only its thread touches it. Ownership: the pool owns the threads; stop()
// joins. Thread rules: post(), run_sync() and wake() from any thread; wake() takes no lock and is one write(2) at most.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace boost::asio {
class io_context;
}

namespace dyn::net {

// Calls its function on the loop's thread after wake(); wakes between two calls are merged into one. What was written
// before wake() is visible to the call that follows it.
class Waker {
 public:
  virtual ~Waker() = default;
  virtual void wake() noexcept = 0;
};

class EventLoop {
 public:
  EventLoop(unsigned index, std::string name);
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  [[nodiscard]] unsigned index() const { return index_; }
  [[nodiscard]] bool in_loop_thread() const;
  [[nodiscard]] boost::asio::io_context& context();

  void post(std::function<void()> work);
  // Runs `work` on the loop's thread and waits for its end; at once and here when this is that thread, or when the loop
  // does not run (nobody else can then touch what belongs to it). Not while another thread calls start() or stop().
  void run_sync(const std::function<void()>& work);
  // `on_wake` is called on the loop's thread and is kept as long as the loop; a wake after the loop's end does nothing.
  std::shared_ptr<Waker> add_waker(std::function<void()> on_wake);

  void start();
  void stop();  // lets the running callback end, then joins; not from the loop's own thread

 private:
  struct Impl;
  unsigned index_;
  std::unique_ptr<Impl> impl_;
};

class LoopPool {
 public:
  LoopPool(unsigned count, const std::string& name);
  ~LoopPool();
  void start();
  void stop();
  [[nodiscard]] unsigned size() const { return static_cast<unsigned>(loops_.size()); }
  EventLoop& at(unsigned index) { return *loops_[index]; }
  // Round robin; from any thread.
  EventLoop& next();

 private:
  std::vector<std::unique_ptr<EventLoop>> loops_;
  std::atomic<unsigned> next_ = 0;
};

}  // namespace dyn::net

#include "engine/inbox.h"

#include <utility>

namespace dyn::engine {

Inbox::~Inbox() {
  std::vector<Command> rest;
  take(rest);
}

void Inbox::push(Command command) {
  Node* node = new Node{std::move(command), top_.load(std::memory_order_relaxed)};
  while (!top_.compare_exchange_weak(node->next, node)) {
  }
  events_.notify();
}

void Inbox::wake() noexcept {
  woken_.store(true);
  events_.notify();
}

void Inbox::take(std::vector<Command>& out) {
  if (top_.load(std::memory_order_relaxed) == nullptr) return;
  Node* newest_first = top_.exchange(nullptr);
  Node* oldest_first = nullptr;
  while (newest_first != nullptr) {
    Node* next = std::exchange(newest_first->next, oldest_first);
    oldest_first = std::exchange(newest_first, next);
  }
  while (oldest_first != nullptr) {
    out.push_back(std::move(oldest_first->command));
    delete std::exchange(oldest_first, oldest_first->next);
  }
}

void Inbox::wait_until(TimePoint deadline) {
  events_.wait_until(deadline, [this] { return top_.load() != nullptr || woken_.load(); });
  woken_.store(false);
}

}  // namespace dyn::engine

// HostArena: one large piece of host memory for weights, KV pages and activations.
//
//   auto arena = HostArena::allocate(bytes);
//   if (!arena) return arena.error().with_context("KV pool");
//   float* pages = reinterpret_cast<float*>(arena->data());
//
// Zeroed, page-aligned, asks the kernel for huge pages; untouched parts cost nothing, and on a machine with several
// memory nodes a page lies on the node of the thread that touches it first. Ownership: the arena owns the memory.
// Thread rules: plain value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"

namespace dyn::native {

class HostArena {
 public:
  HostArena() = default;
  static Result<HostArena> allocate(uint64_t bytes);
  HostArena(HostArena&& other) noexcept;
  HostArena& operator=(HostArena&& other) noexcept;
  ~HostArena();
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] uint64_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace dyn::native

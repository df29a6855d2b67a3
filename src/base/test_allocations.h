// Help for tests only: counts what this thread allocates, for code that must allocate nothing in steady state.
//
//   SKIP_UNLESS_ALLOCATIONS_ARE_COUNTED();
//   const size_t before = allocations();
//   work();
//   EXPECT_EQ(allocations() - before, 0U);
//
// Replaces the program's operator new, so exactly one .cc file of a test program includes this header. Under a
// sanitizer, whose own allocator must see every allocation, nothing is counted. Thread rules: each thread has a count
// of its own.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define DYN_TEST_UNDER_SANITIZER 1
#endif
#endif

#ifdef DYN_TEST_UNDER_SANITIZER
#define SKIP_UNLESS_ALLOCATIONS_ARE_COUNTED() GTEST_SKIP() << "allocations are not counted under a sanitizer"
#else
#define SKIP_UNLESS_ALLOCATIONS_ARE_COUNTED() static_assert(true)
#endif

namespace dyn {
namespace internal {
inline thread_local size_t g_allocations = 0;
}

// Of the calling thread since its start.
inline size_t allocations() {
  return internal::g_allocations;
}
}  // namespace dyn

#ifndef DYN_TEST_UNDER_SANITIZER
// The other forms (arrays, nothrow) end here by default; aligned ones are not counted.
void* operator new(size_t size) {
  ++dyn::internal::g_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
#endif

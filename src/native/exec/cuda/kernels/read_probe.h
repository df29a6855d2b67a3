// A kernel that does nothing but read: the ceiling that decode steps are measured against.
//
//   launch_read_probe(buffer, bytes, sink, stream);     // time it with events
//
// Every 16 bytes are read once, eight independent loads a thread in flight, not cached in L1. The buffer should be
// several times the L2 cache (60 MB on Hopper). `sink` keeps the compiler from leaving the loads out. Ownership: the
// caller's. Thread rules: any thread with the device current.
#pragma once

#include <driver_types.h>

#include <cstddef>
#include <cstdint>

namespace dyn::native::cuda {

cudaError_t launch_read_probe(const void* buffer, uint64_t bytes, float* sink, cudaStream_t stream);

}  // namespace dyn::native::cuda

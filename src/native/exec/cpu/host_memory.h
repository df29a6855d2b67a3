// How much memory is left for the KV pool of the CPU executor.
//
//   limits.num_pages = default_kv_bytes() / kv_bytes_per_page(config, 32);
//
// Source: Linux, Documentation/admin-guide/cgroup-v{1,2}; as kubelet does, file cache that can be dropped at once
// counts as free. Thread rules: any thread; reads files of /proc and /sys.
#pragma once

#include <cstdint>
#include <string>

namespace dyn::native {

// Memory this process may still take: the least of MemAvailable and what its cgroup (v1 or v2) and the groups above it
// leave. The folders are arguments for tests only.
uint64_t available_memory_bytes(const std::string& proc = "/proc", const std::string& cgroups = "/sys/fs/cgroup");

// What a KV pool may take after the weights are loaded: `free_fraction` of the available memory.
uint64_t default_kv_bytes(double free_fraction = 0.5);

}  // namespace dyn::native

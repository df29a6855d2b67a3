// Small helpers for threads: names that show up in top -H and in a debugger, and the processors there are for them.
//
//   set_thread_name("compute-1");
//   pin_thread({4, 12});                     // a core with its two hardware threads
//   std::vector<std::jthread> pool(usable_cpus());
//
// Thread rules: functions of the calling thread, or of the process.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dyn {

// At most 15 characters are kept (the kernel's limit).
void set_thread_name(std::string_view name);

// Numbers of the processors that the calling thread may run on, ascending; empty when the kernel does not say.
std::vector<unsigned> affinity_cpus();

// Binds the calling thread to these processors; false when the kernel refuses. Threads that it starts inherit this.
bool pin_thread(std::span<const unsigned> cpus);

// How many processors' worth of time the process's control groups (v1 or v2) grant it, rounded up; 0: no limit. The
// folders are arguments for tests only.
unsigned cpu_quota(const std::string& proc = "/proc", const std::string& cgroups = "/sys/fs/cgroup");

// Processors this process may run on (affinity and quota respected), at least 1.
unsigned usable_cpus();

}  // namespace dyn

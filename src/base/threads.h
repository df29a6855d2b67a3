// Small helpers for threads: names that show up in top -H and in a debugger.
#pragma once

#include <string_view>

namespace dyn {

// At most 15 characters are kept (the kernel's limit).
void set_thread_name(std::string_view name);

// Processors this process may run on (affinity and cgroup quota respected), at least 1.
unsigned usable_cpus();

}  // namespace dyn

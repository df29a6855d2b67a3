#include "base/threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

namespace dyn {

void set_thread_name(std::string_view name) {
  const std::string cut(name.substr(0, 15));
  pthread_setname_np(pthread_self(), cut.c_str());
}

unsigned usable_cpus() {
  unsigned cpus = 1;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cpus = static_cast<unsigned>(std::max(1, CPU_COUNT(&set)));
  // cgroup v2: "quota period" in microseconds, or "max period".
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (file >> quota >> period && quota != "max" && period > 0) {
    try {
      const double share = std::ceil(std::stod(quota) / period);
      cpus = std::min(cpus, static_cast<unsigned>(std::max(1.0, share)));
    } catch (const std::exception&) {  // not a number: no limit known
    }
  }
  return cpus;
}

}  // namespace dyn

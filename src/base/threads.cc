#include "base/threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <memory>

#include "base/cgroup.h"

namespace dyn {
namespace {

constexpr unsigned kMaxCpus = 1u << 16;

// A cpu_set_t of any size: machines with more than 1024 processors exist.
class CpuSet {
 public:
  explicit CpuSet(unsigned cpus)
      : set_(CPU_ALLOC(cpus), [](cpu_set_t* set) { CPU_FREE(set); }), bytes_(CPU_ALLOC_SIZE(cpus)) {
    CPU_ZERO_S(bytes_, set_.get());
  }
  [[nodiscard]] cpu_set_t* get() const { return set_.get(); }
  [[nodiscard]] size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set_;
  size_t bytes_;
};

// The first two numbers of a file of a control group; less than 0 for what is not a number.
std::pair<double, double> two_numbers(const std::string& text) {
  double values[2] = {-1, -1};
  const char* at = text.data();
  const char* end = at + text.size();
  for (double& value : values) {
    while (at < end && *at == ' ') ++at;
    const auto [stop, error] = std::from_chars(at, end, value);
    if (error != std::errc()) break;
    at = stop;
  }
  return {values[0], values[1]};
}

}  // namespace

void set_thread_name(std::string_view name) {
  const std::string cut(name.substr(0, 15));
  pthread_setname_np(pthread_self(), cut.c_str());
}

std::vector<unsigned> affinity_cpus() {
  std::vector<unsigned> cpus;
  for (unsigned most = 1024; most <= kMaxCpus; most *= 2) {
    const CpuSet set(most);
    if (sched_getaffinity(0, set.bytes(), set.get()) != 0) continue;  // EINVAL: the kernel knows more processors
    for (unsigned cpu = 0; cpu < most; ++cpu) {
      if (CPU_ISSET_S(cpu, set.bytes(), set.get())) cpus.push_back(cpu);
    }
    break;
  }
  return cpus;
}

bool pin_thread(std::span<const unsigned> cpus) {
  if (cpus.empty() || *std::ranges::max_element(cpus) >= kMaxCpus) return false;
  const CpuSet set(*std::ranges::max_element(cpus) + 1);
  for (const unsigned cpu : cpus) CPU_SET_S(cpu, set.bytes(), set.get());
  return sched_setaffinity(0, set.bytes(), set.get()) == 0;
}

unsigned cpu_quota(const std::string& proc, const std::string& cgroups) {
  unsigned least = 0;
  for (const CgroupFolder& group : cgroup_folders("cpu", proc, cgroups)) {
    // Microseconds of time in a period; "max" or -1 without a limit.
    auto [quota, period] =
        two_numbers(read_small_file(group.path + (group.version == 2 ? "/cpu.max" : "/cpu.cfs_quota_us")));
    if (group.version == 1) period = two_numbers(read_small_file(group.path + "/cpu.cfs_period_us")).first;
    if (!(quota > 0 && period > 0)) continue;
    const auto cpus = static_cast<unsigned>(std::clamp(std::ceil(quota / period), 1.0, double{kMaxCpus}));
    least = least == 0 ? cpus : std::min(least, cpus);
  }
  return least;
}

unsigned usable_cpus() {
  const auto cpus = static_cast<unsigned>(std::max<size_t>(1, affinity_cpus().size()));
  const unsigned quota = cpu_quota();
  return quota == 0 ? cpus : std::min(cpus, quota);
}

}  // namespace dyn

#include "app/bench_stream_stats.h"

#include <fcntl.h>
#include <unistd.h>
#include <ctime>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <sstream>

#include "base/posix.h"

namespace dyn::app::bench {
namespace {

std::string read_text(const std::string& path) {
  auto file = open_fd(path, O_RDONLY | O_CLOEXEC);
  if (!file) return {};
  auto text = read_all(file->get(), 1 << 20);
  return text ? std::move(*text) : std::string();
}

// The number behind "name:" in /proc/.../status.
uint64_t status_value(const std::string& status, std::string_view name) {
  const size_t at = status.find("\n" + std::string(name) + ":");
  if (at == std::string::npos) return 0;
  return std::strtoull(status.c_str() + at + name.size() + 2, nullptr, 10);
}

}  // namespace

Result<ProcessUsage> read_process_usage(pid_t pid) {
  ProcessUsage usage;
  clockid_t clock{};
  timespec cpu{};
  if (const int error = ::clock_getcpuclockid(pid, &clock); error != 0)
    return errno_error("cannot read the CPU clock of process " + std::to_string(pid), error);
  if (::clock_gettime(clock, &cpu) != 0)
    return errno_error("cannot read the CPU clock of process " + std::to_string(pid), errno);
  usage.cpu_ns = static_cast<uint64_t>(cpu.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(cpu.tv_nsec);

  const std::string proc = "/proc/" + std::to_string(pid);
  // Fields 14 and 15, counted behind the process name, which may hold anything but ends with the last ')'.
  const std::string stat = read_text(proc + "/stat");
  if (const size_t name_end = stat.rfind(')'); name_end != std::string::npos) {
    std::istringstream fields(stat.substr(name_end + 1));
    std::string skipped;
    for (int i = 0; i < 11; ++i) fields >> skipped;
    uint64_t user_ticks = 0;
    uint64_t system_ticks = 0;
    fields >> user_ticks >> system_ticks;
    const auto tick_ns = 1'000'000'000ULL / static_cast<uint64_t>(::sysconf(_SC_CLK_TCK));
    usage.user_ns = user_ticks * tick_ns;
    usage.system_ns = system_ticks * tick_ns;
  }

  std::error_code ignored;
  for (const auto& task : std::filesystem::directory_iterator(proc + "/task", ignored)) {
    const std::string status = read_text(task.path() / "status");
    usage.voluntary_switches += status_value(status, "voluntary_ctxt_switches");
    usage.involuntary_switches += status_value(status, "nonvoluntary_ctxt_switches");
    ThreadUsage thread;
    thread.tid = std::atoi(task.path().filename().c_str());
    thread.name = read_text(task.path() / "comm");
    if (!thread.name.empty() && thread.name.back() == '\n') thread.name.pop_back();
    thread.cpu_ns = std::strtoull(read_text(task.path() / "schedstat").c_str(), nullptr, 10);
    usage.threads.push_back(std::move(thread));
  }
  return usage;
}

ProcessUsage usage_between(const ProcessUsage& before, const ProcessUsage& after) {
  const auto less = [](uint64_t later, uint64_t earlier) { return later > earlier ? later - earlier : 0; };
  ProcessUsage delta;
  delta.cpu_ns = less(after.cpu_ns, before.cpu_ns);
  delta.user_ns = less(after.user_ns, before.user_ns);
  delta.system_ns = less(after.system_ns, before.system_ns);
  delta.voluntary_switches = less(after.voluntary_switches, before.voluntary_switches);
  delta.involuntary_switches = less(after.involuntary_switches, before.involuntary_switches);
  for (const ThreadUsage& thread : after.threads) {
    const auto same = std::ranges::find(before.threads, thread.tid, &ThreadUsage::tid);
    const uint64_t used = less(thread.cpu_ns, same == before.threads.end() ? 0 : same->cpu_ns);
    if (used > 0) delta.threads.push_back({thread.tid, thread.name, used});
  }
  std::ranges::sort(delta.threads, std::ranges::greater(), &ThreadUsage::cpu_ns);
  return delta;
}

uint64_t read_machine_cpu_ns() {
  // "cpu user nice system idle iowait irq softirq steal ..." in ticks.
  std::istringstream line(read_text("/proc/stat"));
  std::string name;
  uint64_t user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0;
  line >> name >> user >> nice >> system >> idle >> iowait >> irq >> softirq;
  return (user + nice + system + irq + softirq) * (1'000'000'000ULL / static_cast<uint64_t>(::sysconf(_SC_CLK_TCK)));
}

double percentile(const std::vector<uint32_t>& sorted, double q) {
  if (sorted.empty()) return 0;
  const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace dyn::app::bench

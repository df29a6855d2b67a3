// Where compute threads run: which processors belong to one core and to one memory node.
//
//   ThreadPool pool(place_threads(0));                    // this machine, one thread a core
//   auto cpus = read_cpus("/sys", {0, 1, 8, 9});          // for tests
//   auto places = place_threads(cpus, 4, 0);
//
// A product is bound by memory, so a second thread on a core adds nothing before every core has one. Threads are spread
// evenly over memory nodes, for the bandwidth of each. How firmly a thread is bound depends on what can be known:
//
//   all usable cores have a thread   each is bound to its core (to both of its hardware threads)
//   several memory nodes             each is bound to the processors of its node
//   otherwise, or with a CPU quota   the kernel chooses: which part of the machine others use is not known here
//
// Source: Linux, Documentation/ABI/stable/sysfs-devices-{node,system-cpu}. Thread rules: any thread; reads files.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dyn::native {

struct Cpu {
  unsigned id = 0;
  unsigned core = 0;  // the least processor of the same core
  unsigned node = 0;  // memory node, as the kernel numbers them
};

struct ThreadPlace {
  std::vector<unsigned> cpus;  // that the thread is bound to; empty: any
  unsigned node = 0;           // from 0 without gaps

  bool operator==(const ThreadPlace&) const = default;
};

// The processors of `usable` as /sys describes them; what it does not describe is a core of its own on node 0.
std::vector<Cpu> read_cpus(const std::string& sys, std::span<const unsigned> usable);

// "0-3,8,10-11" as the kernel writes sets of processors; malformed parts are left out.
std::vector<unsigned> parse_cpu_list(std::string_view text);

// Places of `threads` threads, at least 1. `quota`: processors' worth of time that the process is granted, 0 without a
// limit.
std::vector<ThreadPlace> place_threads(std::span<const Cpu> cpus, unsigned threads, unsigned quota);

// Of this process on this machine; 0 threads: default_threads().
std::vector<ThreadPlace> place_threads(unsigned threads);

// One for each core that the process may use, not more than its CPU quota.
unsigned default_threads(std::span<const Cpu> cpus, unsigned quota);
unsigned default_threads();

}  // namespace dyn::native

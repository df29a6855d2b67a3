#include "native/exec/cpu/cpu_topology.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <utility>

#include "base/cgroup.h"
#include "base/threads.h"

namespace dyn::native {
namespace {

constexpr unsigned kMaxListed = 1u << 16;  // no machine has a processor of a higher number

// Processors by core, cores by node; all ascending.
using Cores = std::vector<std::vector<unsigned>>;
std::vector<Cores> cores_of_nodes(std::span<const Cpu> cpus) {
  std::map<unsigned, std::map<unsigned, std::vector<unsigned>>> sorted;
  for (const Cpu& cpu : cpus) sorted[cpu.node][cpu.core].push_back(cpu.id);
  std::vector<Cores> nodes;
  for (auto& [node, cores] : sorted) {
    Cores& list = nodes.emplace_back();
    for (auto& [core, members] : cores) {
      std::ranges::sort(members);
      list.push_back(std::move(members));
    }
  }
  return nodes;
}

std::vector<unsigned> joined(const Cores& cores) {
  std::vector<unsigned> all;
  for (const auto& core : cores) all.insert(all.end(), core.begin(), core.end());
  std::ranges::sort(all);
  return all;
}

}  // namespace

std::vector<unsigned> parse_cpu_list(std::string_view text) {
  std::vector<unsigned> cpus;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    unsigned first = 0;
    auto [stop, error] = std::from_chars(at, end, first);
    unsigned last = first;
    if (error == std::errc() && stop < end && *stop == '-') {
      const auto range = std::from_chars(stop + 1, end, last);
      error = range.ec;
      stop = range.ptr;
    }
    if (error == std::errc() && last < kMaxListed) {
      for (unsigned cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
    }
    at = std::find(stop, end, ',');
    if (at < end) ++at;
  }
  return cpus;
}

std::vector<Cpu> read_cpus(const std::string& sys, std::span<const unsigned> usable) {
  std::map<unsigned, unsigned> node_of;
  for (const unsigned node : parse_cpu_list(read_small_file(sys + "/devices/system/node/online"))) {
    const std::string path = fmt::format("{}/devices/system/node/node{}/cpulist", sys, node);
    for (const unsigned cpu : parse_cpu_list(read_small_file(path))) node_of[cpu] = node;
  }
  std::vector<Cpu> cpus;
  for (const unsigned id : usable) {
    const std::string path = fmt::format("{}/devices/system/cpu/cpu{}/topology/thread_siblings_list", sys, id);
    const std::vector<unsigned> siblings = parse_cpu_list(read_small_file(path));
    const auto node = node_of.find(id);
    cpus.push_back({.id = id,
                    .core = siblings.empty() ? id : std::ranges::min(siblings),
                    .node = node == node_of.end() ? 0 : node->second});
  }
  return cpus;
}

std::vector<ThreadPlace> place_threads(std::span<const Cpu> cpus, unsigned threads, unsigned quota) {
  const std::vector<Cores> nodes = cores_of_nodes(cpus);
  size_t cores = 0;
  for (const Cores& node : nodes) cores += node.size();
  std::vector<ThreadPlace> places(std::max(1U, threads));
  const bool free = quota != 0 && quota < cpus.size();
  if (free || cores == 0) return places;
  const bool whole = places.size() >= cores && places.size() <= cpus.size();
  if (!whole && nodes.size() == 1) return places;

  // Thread i goes to the node that has the fewest threads for its number of cores. Threads of one node stand together,
  // so that a product's rows are cut into one piece a node.
  std::vector<size_t> counts(nodes.size());
  for (size_t i = 0; i < places.size(); ++i) {
    size_t best = 0;
    for (size_t n = 1; n < nodes.size(); ++n) {
      if (counts[n] * nodes[best].size() < counts[best] * nodes[n].size()) best = n;
    }
    ++counts[best];
  }
  size_t place = 0;
  unsigned number = 0;  // of a node that has threads
  for (size_t n = 0; n < nodes.size(); ++n) {
    for (size_t i = 0; i < counts[n]; ++i, ++place) {
      places[place] = {.cpus = whole ? nodes[n][i % nodes[n].size()] : joined(nodes[n]), .node = number};
    }
    if (counts[n] > 0) ++number;
  }
  return places;
}

std::vector<ThreadPlace> place_threads(unsigned threads) {
  const std::vector<Cpu> cpus = read_cpus("/sys", affinity_cpus());
  const unsigned quota = cpu_quota();
  return place_threads(cpus, threads != 0 ? threads : default_threads(cpus, quota), quota);
}

unsigned default_threads(std::span<const Cpu> cpus, unsigned quota) {
  size_t cores = 0;
  for (const Cores& node : cores_of_nodes(cpus)) cores += node.size();
  if (quota != 0) cores = std::min<size_t>(cores, quota);
  return static_cast<unsigned>(std::max<size_t>(1, cores));
}

unsigned default_threads() {
  return default_threads(read_cpus("/sys", affinity_cpus()), cpu_quota());
}

}  // namespace dyn::native

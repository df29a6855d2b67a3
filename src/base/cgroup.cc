#include "base/cgroup.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>

#include "base/posix.h"

namespace dyn {
namespace {

constexpr size_t kMaxFileBytes = 1u << 20;

}  // namespace

std::string read_small_file(const std::string& path) {
  auto file = open_fd(path, O_RDONLY | O_CLOEXEC);
  if (!file) return {};
  auto text = read_all(file->get(), kMaxFileBytes);
  return text ? std::move(*text) : std::string();
}

std::vector<CgroupFolder> cgroup_folders(std::string_view controller, const std::string& proc,
                                         const std::string& root) {
  std::vector<CgroupFolder> folders;
  const std::string wanted = "," + std::string(controller) + ",";
  const std::string groups = read_small_file(proc + "/self/cgroup");
  std::string_view rest = groups;
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));  // hierarchy:controllers:path
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const size_t first = line.find(':');
    const size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos) continue;
    const int version = line.starts_with("0::") ? 2 : 1;
    const std::string controllers = "," + std::string(line.substr(first + 1, second - first - 1)) + ",";
    if (version == 1 && controllers.find(wanted) == std::string::npos) continue;
    const std::string mount = version == 2 ? root : root + "/" + std::string(controller);
    std::string path(line.substr(second + 1));
    while (true) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      folders.push_back({.path = mount + path, .version = version});
      if (path.empty()) break;
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  return folders;
}

}  // namespace dyn

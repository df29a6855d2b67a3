// Help for the tests of the options: run a command line against an environment, write temporary files. Test code only.
//
//   auto resolved = resolve({"--max-batch-size", "4"}, {{"DYN_NAMESPACE", "x"}});
//   TempFile file("max_batch_size: 8\n");  file.path()
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "app/cli.h"
#include "app/options/command_line.h"
#include "app/options/settings.h"

namespace dyn::app::testing {

// The default store, etcd, is refused; nearly every test wants another one.
inline Environment file_store() {
  return {{"DYN_DISCOVERY_BACKEND", "file"}};
}

inline Result<Resolved> resolve(std::vector<std::string> arguments, const Environment& environment = file_store()) {
  const std::vector<std::string_view> views(arguments.begin(), arguments.end());
  auto line = parse_arguments(views);
  if (!line) return line.error();
  return resolve_settings(*line, environment);
}

inline Result<ParsedCommand> parse(std::vector<std::string> arguments, const Environment& environment = file_store()) {
  const std::vector<std::string_view> views(arguments.begin(), arguments.end());
  return parse_command_line(views, environment);
}

inline std::string error_of(const Result<Resolved>& resolved) {
  return resolved ? std::string("(no error)") : resolved.error().message;
}
inline std::string error_of(const Result<ParsedCommand>& command) {
  return command ? std::string("(no error)") : command.error().message;
}

inline std::string notices_of(const std::vector<Notice>& notices) {
  std::string text;
  for (const Notice& notice : notices) text += notice.text + "\n";
  return text;
}

class TempFile {
 public:
  explicit TempFile(std::string_view text) {
    const char* folder = std::getenv("TMPDIR");
    path_ = std::string(folder != nullptr ? folder : "/tmp") + "/dyn_options_XXXXXX";
    const int fd = ::mkstemp(path_.data());
    EXPECT_GE(fd, 0);
    EXPECT_EQ(::write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
    ::close(fd);
  }
  ~TempFile() { ::unlink(path_.c_str()); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace dyn::app::testing

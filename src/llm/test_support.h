// Help for tests only: the request bodies in tests/golden/requests, one case after the other.
//
//   for (const RequestCase& c : load_request_cases("1.6.1")) { SCOPED_TRACE(c.name()); ... decode_request(c.body...) }
//
// Needs DYN_SOURCE_DIR, which every test program has. Thread rules: plain functions.
#pragma once

#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "wire/json_reader.h"

namespace dyn::llm {

inline constexpr const char* kGoldenVersions[] = {"0.8.1.post3", "1.0.2", "1.5.1", "1.6.1"};

struct RequestCase {
  std::string version;
  std::string case_id;  // "logprobs_top5"
  std::string folder;   // "aggregated", "disagg", ...
  std::string leg;      // "prefill", "decode" or empty
  std::string body;     // JSON
  std::string expect;   // JSON, see tests/golden/README.md

  [[nodiscard]] std::string name() const { return version + "/" + folder + "/" + case_id + "/" + leg; }
};

inline std::string read_golden_file(const std::string& path_below_golden) {
  std::ifstream in(std::string(DYN_SOURCE_DIR) + "/tests/golden/" + path_below_golden, std::ios::binary);
  if (!in) throw std::runtime_error("no golden file " + path_below_golden);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

inline std::vector<RequestCase> load_request_cases(const std::string& version) {
  std::istringstream lines(read_golden_file("requests/" + version + ".jsonl"));
  std::vector<RequestCase> cases;
  for (std::string line; std::getline(lines, line);) {
    RequestCase& one = cases.emplace_back();
    one.version = version;
    wire::JsonReader in(as_bytes(line));
    const auto read_json = [&](std::string& out) {
      Buffer json;
      if (!in.append_json(json)) return false;
      out = as_text(json.view());
      return true;
    };
    in.read_object([&](std::string_view key) {
      if (key == "case") return in.read(one.case_id);
      if (key == "folder") return in.read(one.folder);
      if (key == "leg") return in.read(one.leg);
      if (key == "body") return read_json(one.body);
      if (key == "expect") return read_json(one.expect);
      return in.skip();
    });
    if (auto done = in.finish(); !done) throw std::runtime_error(version + ".jsonl: " + done.error().message);
  }
  return cases;
}

}  // namespace dyn::llm

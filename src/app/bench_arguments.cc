#include "app/bench_arguments.h"

namespace dyn::app::bench {

std::string_view ArgumentReader::next() {
  std::string_view name = args_.front();
  args_ = args_.subspan(1);
  if (const size_t equals = name.find('='); name.starts_with("--") && equals != std::string_view::npos) {
    inline_value_ = name.substr(equals + 1);
    name = name.substr(0, equals);
  }
  name_ = name;
  return name;
}

Result<void> ArgumentReader::finish(const Result<void>& taken) const {
  if (!taken) return taken.error();
  if (inline_value_) return invalid_argument(std::string(name_) + " takes no value");
  return {};
}

Result<void> ArgumentReader::take(std::string& to) {
  auto text = value();
  if (!text) return text.error();
  to = *text;
  return {};
}

Result<void> ArgumentReader::take_list(std::vector<unsigned>& to, unsigned most) {
  auto text = value();
  if (!text) return text.error();
  std::string_view rest = *text;
  to.clear();
  for (;;) {
    const size_t comma = rest.find(',');
    auto number = parse_number<unsigned>(name_, rest.substr(0, comma), 1, most);
    if (!number) return number.error();
    to.push_back(*number);
    if (comma == std::string_view::npos) return {};
    rest.remove_prefix(comma + 1);
  }
}

Result<std::string_view> ArgumentReader::value() {
  if (inline_value_) {
    const std::string_view text = *inline_value_;
    inline_value_.reset();
    return text;
  }
  if (args_.empty()) return invalid_argument(std::string(name_) + " needs a value");
  const std::string_view text = args_.front();
  args_ = args_.subspan(1);
  return text;
}

}  // namespace dyn::app::bench

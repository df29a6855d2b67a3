#include "base/buffer.h"

#include <algorithm>

namespace dyn {

void Buffer::reserve(size_t count) {
  if (storage_.size() - end_ >= count) return;
  const size_t used = size();
  if (begin_ > 0) {
    std::memmove(storage_.data(), storage_.data() + begin_, used);
    begin_ = 0;
    end_ = used;
  }
  if (storage_.size() - end_ < count) storage_.resize(std::max(storage_.size() * 2, used + count));
}

void Buffer::trim(size_t keep) {
  if (empty() && storage_.size() > keep) {
    storage_.resize(keep);
    storage_.shrink_to_fit();
  }
}

}  // namespace dyn

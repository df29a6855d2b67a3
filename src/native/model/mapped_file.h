// MappedFile: a whole file mapped for reading.
//
//   auto file = MappedFile::open("/models/x/model.safetensors");
//   consume(file->bytes().subspan(a, n));
//   file->drop(file->bytes().subspan(a, n));   // its pages no longer count as this process's memory
//
// A file changed while it is mapped is the administrator's error (the kernel sends SIGBUS). Ownership: views of bytes()
// end with the object. Thread rules: immutable after open; drop() and want() are safe from any thread, also beside
// readers: what was dropped and is read again comes from the page cache.
#pragma once

#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace dyn::native {

class MappedFile {
 public:
  MappedFile() = default;
  static Result<MappedFile> open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  [[nodiscard]] Bytes bytes() const { return bytes_; }

  // `part` of bytes() will be read soon: the kernel starts reading it.
  static void want(Bytes part);
  // `part` of bytes() has been read: its pages leave this process. They stay in the page cache.
  void drop(Bytes part) const;

 private:
  explicit MappedFile(Bytes bytes) : bytes_(bytes) {}
  Bytes bytes_;
};

}  // namespace dyn::native

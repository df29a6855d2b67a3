#include "native/model/model_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/env.h"
#include "base/test_support.h"

namespace dyn::native {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// Sets a variable for one test.
class ScopedEnv {
 public:
  ScopedEnv(const char* name, const std::string& value) : name_(name), before_(env(name)) {
    ::setenv(name, value.c_str(), 1);
  }
  ScopedEnv(const ScopedEnv&) = delete;
  ScopedEnv& operator=(const ScopedEnv&) = delete;
  ~ScopedEnv() {
    if (before_) {
      ::setenv(name_, before_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }

 private:
  const char* name_;
  std::optional<std::string> before_;
};

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

TEST(ResolveModel, TakesADirectory) {
  const TempDir dir;
  EXPECT_THAT(resolve_model(dir.path()).error().message, HasSubstr("no config.json"));
  write(dir / "config.json", "{}");
  auto found = resolve_model(dir.path());
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_EQ(*found, dir.path());
}

TEST(ResolveModel, RefusesWhatIsNoModelDirectory) {
  const TempDir dir;
  EXPECT_EQ(resolve_model("").error().code, Code::kInvalidArgument);
  EXPECT_EQ(resolve_model(dir / "absent/x/y").error().code, Code::kNotFound);
  write(dir / "model.gguf", "x");
  EXPECT_THAT(resolve_model(dir / "model.gguf").error().message, HasSubstr("not a directory"));

  write(dir / "engine/config.json", "{}");
  write(dir / "engine/rank0.engine", "x");
  const Error error = resolve_model(dir / "engine").error();
  EXPECT_EQ(error.code, Code::kUnsupported);
  EXPECT_THAT(error.message, HasSubstr("built TensorRT engine: a binary"));

  // As trtllm-build writes it; the engines themselves may lie elsewhere.
  std::filesystem::create_directory(dir / "built");
  write(dir / "built/config.json", R"({"version": "1.2.1", "pretrained_config": {"architecture": "LlamaForCausalLM",
      "mapping": {"world_size": 2}}, "build_config": {"max_batch_size": 8}})");
  const Error built = resolve_model(dir / "built").error();
  EXPECT_EQ(built.code, Code::kUnsupported);
  EXPECT_THAT(built.message, HasSubstr("TensorRT-LLM 1.2.1 engine of LlamaForCausalLM for 2 GPUs"));
  EXPECT_THAT(built.message, HasSubstr("--model"));
  EXPECT_EQ(built.message.find('\n'), std::string::npos);
  write(dir / "built/config.json", R"({"version": "a\nb", "pretrained_config": {}, "build_config": {}})");
  EXPECT_THAT(resolve_model(dir / "built").error().message, HasSubstr("holds a built TensorRT-LLM engine: a binary"));
}

TEST(ResolveModel, FindsANameInTheHuggingFaceCache) {
  const TempDir dir;
  const fs::path repository = fs::path(dir.path()) / "models--Qwen--Qwen3-0.6B";
  write(repository / "refs/main", "abc123\n");
  const ScopedEnv cache("HF_HUB_CACHE", dir.path());
  EXPECT_THAT(resolve_model("Qwen/Qwen3-0.6B").error().message, HasSubstr("the download is not complete"));
  write(repository / "snapshots/abc123/config.json", "{}");
  auto found = resolve_model("Qwen/Qwen3-0.6B");
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_EQ(*found, (repository / "snapshots/abc123").string());

  const Error absent = resolve_model("Qwen/Other").error();
  EXPECT_EQ(absent.code, Code::kNotFound);
  EXPECT_THAT(absent.message, HasSubstr(dir / "models--Qwen--Other"));
  EXPECT_THAT(absent.message, HasSubstr("hf download Qwen/Other"));
}

TEST(ResolveModel, LooksBelowHfHome) {
  const TempDir dir;
  const ScopedEnv no_cache("HF_HUB_CACHE", "");
  const ScopedEnv no_old_cache("HUGGINGFACE_HUB_CACHE", "");
  const ScopedEnv home("HF_HOME", dir.path());
  write(dir / "hub/models--gpt/refs/main", "1");
  write(dir / "hub/models--gpt/snapshots/1/config.json", "{}");
  EXPECT_TRUE(resolve_model("gpt").ok());
}

TEST(ResolveModel, DoesNotClimbOutOfTheCache) {
  const TempDir dir;
  const ScopedEnv cache("HF_HUB_CACHE", dir / "cache");
  write(dir / "cache/models--a/refs/main", "../../..");
  write(dir / "config.json", "{}");
  EXPECT_THAT(resolve_model("a").error().message, HasSubstr("does not hold a revision"));
  EXPECT_EQ(resolve_model("a/../../b").error().code, Code::kNotFound);
}

TEST(ReadModelFile, HasALimit) {
  const TempDir dir;
  write(dir / "file", "12345");
  EXPECT_EQ(*read_model_file(dir / "file", 5), "12345");
  EXPECT_FALSE(read_model_file(dir / "file", 4).ok());
  EXPECT_EQ(read_model_file(dir / "absent", 4).error().code, Code::kNotFound);
}

}  // namespace
}  // namespace dyn::native

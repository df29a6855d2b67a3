#include "native/model/engine_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <tuple>

#include "base/test_support.h"
#include "native/load_engine.h"
#include "native/model/build_engine.h"
#include "native/testing/golden_models.h"

namespace dyn::native {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A copy of a small model, and an engine folder of it.
class EngineFolder : public testing::Test {
 protected:
  void SetUp() override {
    fs::copy(test_model("random/qwen3"), model_);
    ASSERT_TRUE(build(CpuPathChoice::kOracle).ok());
  }

  Result<EngineHeader> build(CpuPathChoice path, WeightDtype dtype = WeightDtype::kAuto,
                             LoadFormat format = LoadFormat::kSafetensors) {
    auto built = build_engine({.model = model_,
                               .output = engine_,
                               .load_format = format,
                               .cpu_path = path,
                               .weight_dtype = dtype,
                               .threads = 2,
                               .builder = "test 1"});
    EXPECT_TRUE(built.ok()) << built.error().message;
    return built;
  }

  // The weights as the model's own files give them, in the layout of the folder.
  Weights packed(MatrixLayout layout, LoadFormat format = LoadFormat::kSafetensors) {
    auto config = load_model_config(model_);
    auto weights = load_weights(*config, model_, {.format = format, .layout = layout});
    EXPECT_TRUE(weights.ok());
    return std::move(*weights);
  }

  Result<Weights> map(MapEngineOptions options = {}) {
    auto config = load_model_config(engine_);
    EXPECT_TRUE(config.ok());
    return map_engine_folder(*config, engine_, options);
  }

  std::string error_of_load(const std::string& model, const std::string& engine_dir,
                            CpuPathChoice path = CpuPathChoice::kAuto, WeightDtype dtype = WeightDtype::kAuto) {
    auto loaded = load_engine({.model = model,
                               .engine_dir = engine_dir,
                               .cpu_path = path,
                               .weight_dtype = dtype,
                               .max_batch_size = 2,
                               .max_num_tokens = 16,
                               .max_seq_len = 64,
                               .tokens_per_block = 8,
                               .kv_cache_bytes = 1 << 20,
                               .threads = 1});
    if (loaded.ok()) return "";
    EXPECT_EQ(loaded.error().message.find('\n'), std::string::npos);
    return loaded.error().message;
  }

  TempDir dir_;
  const std::string model_ = dir_ / "model";
  const std::string engine_ = dir_ / "engine";
  const std::string file_ = engine_ + "/" + std::string(kEngineFile);
};

void expect_equal(const Matrix& a, const Matrix& b) {
  EXPECT_EQ(a.layout, b.layout);
  EXPECT_EQ(a.type, b.type);
  ASSERT_EQ(a.bytes(), b.bytes());
  EXPECT_TRUE(std::equal(a.data, a.data + a.bytes(), b.data));
}

TEST_F(EngineFolder, HoldsTheWeightsOfTheModelInEveryLayout) {
  for (const auto& [path, dtype, layout] :
       {std::tuple{CpuPathChoice::kOracle, WeightDtype::kAuto, MatrixLayout::kRowMajor},
        std::tuple{CpuPathChoice::kAuto, WeightDtype::kAuto, MatrixLayout::kPackedBf16},
        std::tuple{CpuPathChoice::kFast, WeightDtype::kInt8, MatrixLayout::kPackedInt8}}) {
    auto header = build(path, dtype);
    ASSERT_TRUE(header.ok());
    EXPECT_EQ(header->layout, layout);
    const Weights expected = packed(layout);
    for (const auto copy : {MapEngineOptions::Copy::kBySeveralNodes, MapEngineOptions::Copy::kAlways}) {
      auto weights = map({.threads = 2, .copy = copy});
      ASSERT_TRUE(weights.ok()) << weights.error().message;
      expect_equal(weights->embedding, expected.embedding);
      expect_equal(weights->lm_head, expected.lm_head);
      ASSERT_EQ(weights->layers.size(), expected.layers.size());
      for (size_t i = 0; i < expected.layers.size(); ++i) {
        expect_equal(weights->layers[i].qkv, expected.layers[i].qkv);
        expect_equal(weights->layers[i].gate_up, expected.layers[i].gate_up);
        expect_equal(weights->layers[i].down, expected.layers[i].down);
        EXPECT_EQ(weights->layers[i].q_norm[3], expected.layers[i].q_norm[3]);
      }
      EXPECT_EQ(reinterpret_cast<uintptr_t>(weights->layers[1].o.data) % 64, 0U);
    }
    EXPECT_TRUE(verify_engine_folder(engine_, 2).ok());
  }
}

TEST_F(EngineFolder, IsAModelDirectoryAndServes) {
  EXPECT_TRUE(fs::exists(engine_ + "/config.json"));
  EXPECT_FALSE(fs::exists(engine_ + "/model.safetensors"));
  EXPECT_EQ(error_of_load(engine_, ""), "");
  EXPECT_EQ(error_of_load(model_, engine_), "");
  // The model's weights need not be there any more.
  fs::remove(model_ + "/model.safetensors");
  EXPECT_EQ(error_of_load(model_, engine_), "");
}

TEST_F(EngineFolder, IsRefusedWhenItWasMadeFromSomethingElse) {
  const std::string weights = read(model_ + "/model.safetensors");
  std::string other = weights;
  for (size_t i = other.size() / 2; i < other.size(); ++i) other[i] = static_cast<char>(other[i] ^ 1);
  write(model_ + "/model.safetensors", other);
  EXPECT_THAT(error_of_load(model_, engine_), HasSubstr("other weights than those of " + model_));
  write(model_ + "/model.safetensors", weights);
  EXPECT_EQ(error_of_load(model_, engine_), "");
  write(engine_ + "/config.json", read(engine_ + "/config.json") + " ");
  EXPECT_THAT(error_of_load(engine_, ""), HasSubstr("another config.json"));
  write(model_ + "/config.json", read(model_ + "/config.json") + " ");
  EXPECT_THAT(error_of_load(model_, engine_), HasSubstr("another config.json"));
  EXPECT_THAT(error_of_load(model_, model_), HasSubstr("dynamo-trtllm build --model " + model_));
}

TEST_F(EngineFolder, DecidesAboutPathAndTypeUnlessOthersAreAskedFor) {
  EXPECT_EQ(error_of_load(engine_, "", CpuPathChoice::kOracle), "");
  EXPECT_THAT(error_of_load(engine_, "", CpuPathChoice::kFast), HasSubstr("it holds row-major weights"));
  ASSERT_TRUE(build(CpuPathChoice::kAuto).ok());
  EXPECT_EQ(error_of_load(engine_, ""), "");
  EXPECT_EQ(error_of_load(engine_, "", CpuPathChoice::kFast), "");
  EXPECT_THAT(error_of_load(engine_, "", CpuPathChoice::kOracle), HasSubstr("leave them out"));
  EXPECT_THAT(error_of_load(engine_, "", CpuPathChoice::kAuto, WeightDtype::kInt8), HasSubstr("leave them out"));
  ASSERT_TRUE(build(CpuPathChoice::kAuto, WeightDtype::kInt8).ok());
  EXPECT_EQ(error_of_load(engine_, "", CpuPathChoice::kAuto, WeightDtype::kInt8), "");
  EXPECT_EQ(error_of_load(engine_, ""), "");
}

TEST_F(EngineFolder, IsRefusedWhenItIsDamaged) {
  const std::string good = read(file_);
  const struct {
    const char* what;
    std::string bytes;
    const char* why;
  } cases[] = {
      {"empty", "", "cut off"},
      {"a few bytes", good.substr(0, 30), "cut off"},
      {"half a header", good.substr(0, 200), "cut off"},
      {"no data", good.substr(0, 2 << 20), "cut off or too long"},
      {"one byte less", good.substr(0, good.size() - 1), "cut off or too long"},
      {"one byte more", good + "x", "cut off or too long"},
      {"another file", "x" + good.substr(1), "no file of packed weights"},
      {"a changed header", std::string(good).replace(100, 1, "~"), "damaged"},
  };
  for (const auto& c : cases) {
    write(file_, c.bytes);
    EXPECT_THAT(error_of_load(engine_, ""), HasSubstr(c.why)) << c.what;
  }
  std::string flipped = good;
  flipped.back() = static_cast<char>(flipped.back() ^ 1);
  // The end of the last tensor may be filling: the values before it are not.
  flipped[flipped.size() - 70] = static_cast<char>(flipped[flipped.size() - 70] ^ 1);
  write(file_, flipped);
  EXPECT_EQ(error_of_load(engine_, ""), "");  // a start does not read all values
  EXPECT_THAT(verify_engine_folder(engine_, 1).error().message, HasSubstr("are damaged"));
}

// A header that is whole, but not what this program would write.
TEST_F(EngineFolder, IsRefusedWhenItsTensorsAreOthers) {
  const std::string good = read(file_);
  const auto header_with = [&](auto change) {
    auto header = read_engine_folder(engine_);
    change(*header);
    const std::string beginning = format_engine_header(*header);
    write(file_, beginning + good.substr(beginning.size()));
    auto error = error_of_load(engine_, "");
    write(file_, good);
    return error;
  };
  EXPECT_EQ(header_with([](EngineHeader&) {}), "");
  EXPECT_THAT(header_with([](EngineHeader& h) { h.format = 99; }), HasSubstr("format 99, this version reads 1"));
  EXPECT_THAT(header_with([](EngineHeader& h) { h.tensors[2].name = "other"; }), HasSubstr("'other'"));
  EXPECT_THAT(header_with([](EngineHeader& h) { std::swap(h.tensors[1].offset, h.tensors[2].offset); }),
              HasSubstr("the place of tensor"));
  EXPECT_THAT(header_with([](EngineHeader& h) { h.tensors.pop_back(); }), HasSubstr("config.json asks for"));
  EXPECT_THAT(header_with([](EngineHeader& h) { h.tensors[0].shape[0] += 1; }), HasSubstr("do not fit its shape"));
  EXPECT_THAT(header_with([](EngineHeader& h) { h.layout = MatrixLayout::kPackedBf16; }), HasSubstr("build it again"));
}

TEST_F(EngineFolder, TellsWhatItWasMadeFrom) {
  auto header = read_engine_folder(engine_);
  ASSERT_TRUE(header.ok());
  EXPECT_EQ(header->builder, "test 1");
  EXPECT_EQ(header->model, model_);
  EXPECT_EQ(header->architecture, "Qwen3ForCausalLM");
  EXPECT_EQ(header->checkpoint_digest, *checkpoint_digest(model_));
  ASSERT_TRUE(build(CpuPathChoice::kFast, WeightDtype::kAuto, LoadFormat::kDummy).ok());
  EXPECT_EQ(read_engine_folder(engine_)->checkpoint_digest, "");
  expect_equal(map()->layers[0].qkv, packed(MatrixLayout::kPackedBf16, LoadFormat::kDummy).layers[0].qkv);
}

TEST_F(EngineFolder, IsNotBuiltOverOtherFiles) {
  const auto error = [&](const std::string& output) {
    auto built = build_engine({.model = model_, .output = output, .threads = 1, .builder = "test"});
    return built.ok() ? "" : built.error().message;
  };
  EXPECT_THAT(error(model_), HasSubstr("has other files in it"));
  EXPECT_THAT(error(dir_ / "no/such"), HasSubstr("cannot make"));
  EXPECT_EQ(error(engine_), "");
  fs::create_directory(dir_ / "empty");
  EXPECT_EQ(error(dir_ / "empty"), "");
  for (const auto& entry : fs::directory_iterator(engine_)) {
    EXPECT_EQ(entry.path().string().find(".new-"), std::string::npos) << entry.path();
  }
  EXPECT_THAT(build_engine({.model = engine_, .output = dir_ / "again", .builder = "test"}).error().message,
              HasSubstr("is an engine folder already"));
}

}  // namespace
}  // namespace dyn::native

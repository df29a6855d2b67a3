#include "native/model/weights.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>

#include "base/test_support.h"
#include "native/model/safetensors_test_support.h"

namespace dyn::native {
namespace {

using testing::HasSubstr;

ModelConfig small() {
  ModelConfig c;
  c.architecture = "Qwen2ForCausalLM";
  c.vocab_size = 6;
  c.hidden_size = 4;
  c.intermediate_size = 3;
  c.num_layers = 1;
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.head_dim = 2;
  c.max_positions = 8;
  c.qkv_bias = true;
  return c;
}

// A checkpoint in memory: every byte of a tensor is its place in the list of names, so that each part can be
// recognised.
struct Stored {
  std::string dtype;
  std::vector<uint64_t> shape;
  std::string bytes;
};
using Files = std::map<std::string, Stored>;

Files complete(const ModelConfig& c, const std::string& dtype = "BF16") {
  std::map<std::string, std::vector<uint64_t>> shapes = {
      {"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}},
      {"lm_head.weight", {c.vocab_size, c.hidden_size}},
      {"model.norm.weight", {c.hidden_size}},
      {"model.layers.0.input_layernorm.weight", {c.hidden_size}},
      {"model.layers.0.post_attention_layernorm.weight", {c.hidden_size}},
      {"model.layers.0.self_attn.q_proj.weight", {c.q_size(), c.hidden_size}},
      {"model.layers.0.self_attn.k_proj.weight", {c.kv_size(), c.hidden_size}},
      {"model.layers.0.self_attn.v_proj.weight", {c.kv_size(), c.hidden_size}},
      {"model.layers.0.self_attn.q_proj.bias", {c.q_size()}},
      {"model.layers.0.self_attn.k_proj.bias", {c.kv_size()}},
      {"model.layers.0.self_attn.v_proj.bias", {c.kv_size()}},
      {"model.layers.0.self_attn.o_proj.weight", {c.hidden_size, c.q_size()}},
      {"model.layers.0.mlp.gate_proj.weight", {c.intermediate_size, c.hidden_size}},
      {"model.layers.0.mlp.up_proj.weight", {c.intermediate_size, c.hidden_size}},
      {"model.layers.0.mlp.down_proj.weight", {c.hidden_size, c.intermediate_size}},
  };
  Files files;
  char mark = 1;
  for (const auto& [name, shape] : shapes) {
    uint64_t bytes = dtype == "F32" ? 4 : 2;
    for (uint64_t n : shape) bytes *= n;
    files[name] = {dtype, shape, std::string(bytes, mark++)};
  }
  return files;
}

void write_checkpoint(const TempDir& dir, const Files& files) {
  std::string header;
  std::string data;
  for (const auto& [name, t] : files) {
    header += fmt::format(R"({}"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", header.empty() ? "{" : ",",
                          name, t.dtype, fmt::join(t.shape, ","), data.size(), data.size() + t.bytes.size());
    data += t.bytes;
  }
  write_file(dir / "model.safetensors", safetensors_bytes(header + "}", data));
}

Result<Weights> load(const ModelConfig& config, const Files& files, const LoadProgress& progress = {}) {
  const TempDir dir;
  write_checkpoint(dir, files);
  return load_weights(config, dir.path(), {.progress = progress});
}

std::string refused(const ModelConfig& config, const Files& files) {
  auto weights = load(config, files);
  EXPECT_FALSE(weights.ok());
  return weights ? "" : weights.error().message;
}

std::string bytes_of(const Matrix& m) {
  return {reinterpret_cast<const char*>(m.data), m.bytes()};
}

TEST(LoadWeights, FusesAndKeepsEveryBitOfMatrices) {
  const ModelConfig config = small();
  for (const char* dtype : {"BF16", "F16", "F32"}) {
    Files files = complete(config, dtype);
    uint64_t last = 0;
    uint64_t total = 0;
    auto weights = load(config, files, [&](uint64_t done, uint64_t all) {
      EXPECT_GE(done, last);
      last = done;
      total = all;
    });
    ASSERT_TRUE(weights.ok()) << weights.error().message;
    EXPECT_EQ(last, total);
    EXPECT_GT(total, 0U);
    const LayerWeights& layer = weights->layers.at(0);
    const std::string attention = "model.layers.0.self_attn.";
    EXPECT_EQ(to_string(layer.qkv.type), dtype);
    EXPECT_EQ(layer.qkv.rows, config.qkv_size());
    EXPECT_EQ(layer.qkv.cols, config.hidden_size);
    EXPECT_EQ(bytes_of(layer.qkv), files[attention + "q_proj.weight"].bytes + files[attention + "k_proj.weight"].bytes +
                                       files[attention + "v_proj.weight"].bytes);
    EXPECT_EQ(bytes_of(layer.gate_up),
              files["model.layers.0.mlp.gate_proj.weight"].bytes + files["model.layers.0.mlp.up_proj.weight"].bytes);
    EXPECT_EQ(bytes_of(layer.down), files["model.layers.0.mlp.down_proj.weight"].bytes);
    EXPECT_EQ(bytes_of(weights->lm_head), files["lm_head.weight"].bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(layer.qkv.data) % 64, 0U);
    EXPECT_NE(layer.qkv_bias, nullptr);
    EXPECT_EQ(layer.o_bias, nullptr);
    EXPECT_EQ(layer.q_norm, nullptr);
  }
}

TEST(LoadWeights, WidensVectors) {
  const ModelConfig config = small();
  const struct {
    const char* dtype;
    std::string bytes;  // 1.5, -2, the smallest number, infinity
    float third;
  } cases[] = {{"BF16", {"\xC0\x3F\x00\xC0\x01\x00\x80\x7F", 8}, 0x1p-133F},
               {"F16", {"\x00\x3E\x00\xC0\x01\x00\x00\x7C", 8}, 0x1p-24F},
               {"F32", {"\x00\x00\xC0\x3F\x00\x00\x00\xC0\x01\x00\x00\x00\x00\x00\x80\x7F", 16}, 0x1p-149F}};
  for (const auto& c : cases) {
    Files files = complete(config);
    files["model.norm.weight"] = {c.dtype, {4}, c.bytes};
    auto weights = load(config, files);
    ASSERT_TRUE(weights.ok()) << weights.error().message;
    EXPECT_EQ(weights->final_norm[0], 1.5F) << c.dtype;
    EXPECT_EQ(weights->final_norm[1], -2.0F) << c.dtype;
    EXPECT_EQ(weights->final_norm[2], c.third) << c.dtype;
    EXPECT_EQ(weights->final_norm[3], std::numeric_limits<float>::infinity()) << c.dtype;
  }
}

TEST(LoadWeights, NamesTheTensorThatDoesNotFit) {
  const ModelConfig config = small();
  Files files = complete(config);
  files.erase("model.layers.0.self_attn.k_proj.weight");
  EXPECT_THAT(refused(config, files), HasSubstr("tensor 'model.layers.0.self_attn.k_proj.weight': missing"));

  files = complete(config);
  files["model.layers.0.self_attn.q_norm.weight"] = {"BF16", {2}, "abcd"};
  EXPECT_THAT(refused(config, files), HasSubstr("q_norm.weight': Qwen2ForCausalLM has no such tensor"));

  files = complete(config);
  std::swap(files["model.layers.0.mlp.gate_proj.weight"].shape[0],
            files["model.layers.0.mlp.gate_proj.weight"].shape[1]);
  EXPECT_THAT(refused(config, files), HasSubstr("gate_proj.weight': shape [4, 3], config.json asks for [3, 4]"));

  files = complete(config);
  files["model.norm.weight"] = {"F8_E4M3", {4}, "abcd"};
  EXPECT_THAT(refused(config, files), HasSubstr("'model.norm.weight': dtype F8_E4M3 is not supported"));

  files = complete(config);
  files["lm_head.weight"].dtype = "F16";
  EXPECT_THAT(refused(config, files),
              HasSubstr("'lm_head.weight': dtype F16 but 'model.embed_tokens.weight' has BF16"));

  files = complete(config);
  files["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {1}, "abcd"};  // of old converters
  EXPECT_TRUE(load(config, files).ok());
}

TEST(LoadWeights, KnowsTiedEmbeddings) {
  ModelConfig config = small();
  Files files = complete(config);
  files.erase("lm_head.weight");
  EXPECT_THAT(refused(config, files), HasSubstr("does not say 'tie_word_embeddings': true"));

  config.tie_embeddings = true;
  auto weights = load(config, files);
  ASSERT_TRUE(weights.ok()) << weights.error().message;
  EXPECT_EQ(weights->lm_head.data, weights->embedding.data);
  EXPECT_EQ(weights->lm_head.rows, config.vocab_size);

  // Qwen3-0.6B stores its tied head a second time.
  files["lm_head.weight"] = files["model.embed_tokens.weight"];
  EXPECT_TRUE(load(config, files).ok());
  files["lm_head.weight"].bytes[0] ^= 1;
  EXPECT_THAT(refused(config, files), HasSubstr("'lm_head.weight': differs from the embedding"));
}

TEST(LoadWeights, ReadsFusedTensors) {
  ModelConfig config = small();
  config.qkv_bias = false;
  config.stored_fused = true;
  Files files = complete(config);
  const std::string attention = "model.layers.0.self_attn.";
  const std::string mlp = "model.layers.0.mlp.";
  for (const std::string name : {"q_proj", "k_proj", "v_proj"}) {
    files.erase(attention + name + ".weight");
    files.erase(attention + name + ".bias");
  }
  for (const char* name : {"gate_proj", "up_proj"}) files.erase(mlp + name + ".weight");
  EXPECT_THAT(refused(config, files), HasSubstr("qkv_proj.weight': missing"));
  files[attention + "qkv_proj.weight"] = {"BF16", {8, 4}, std::string(64, 'a')};
  files[mlp + "gate_up_proj.weight"] = {"BF16", {6, 4}, std::string(48, 'b')};
  auto weights = load(config, files);
  ASSERT_TRUE(weights.ok()) << weights.error().message;
  EXPECT_EQ(bytes_of(weights->layers[0].qkv), std::string(64, 'a'));
  EXPECT_EQ(bytes_of(weights->layers[0].gate_up), std::string(48, 'b'));
}

TEST(LoadWeights, PutsExpertsInThePlaceOfTheFeedForwardNetwork) {
  ModelConfig config = small();
  config.layers = {{.experts = true}};
  config.experts = {.count = 2, .chosen = 1, .intermediate_size = 5};
  Files files = complete(config);
  const std::string mlp = "model.layers.0.mlp.";
  EXPECT_THAT(refused(config, files), HasSubstr("'model.layers.0.mlp.gate.weight': missing"));
  for (const char* name : {"gate_proj", "up_proj", "down_proj"}) files.erase(mlp + name + ".weight");
  files[mlp + "gate.weight"] = {"BF16", {2, 4}, std::string(16, 'r')};
  for (const std::string expert : {"0", "1"}) {
    const std::string at = mlp + "experts." + expert;
    files[at + ".gate_proj.weight"] = {"BF16", {5, 4}, std::string(40, 'g')};
    files[at + ".up_proj.weight"] = {"BF16", {5, 4}, std::string(40, 'u')};
    files[at + ".down_proj.weight"] = {"BF16", {4, 5}, std::string(40, expert[0])};
  }
  auto weights = load(config, files);
  ASSERT_TRUE(weights.ok()) << weights.error().message;
  const LayerWeights& layer = weights->layers[0];
  EXPECT_EQ(layer.gate_up.data, nullptr);
  EXPECT_EQ(bytes_of(layer.router), std::string(16, 'r'));
  ASSERT_EQ(layer.experts.size(), 2U);
  EXPECT_EQ(bytes_of(layer.experts[1].gate_up), std::string(40, 'g') + std::string(40, 'u'));
  EXPECT_EQ(bytes_of(layer.experts[1].down), std::string(40, '1'));
  EXPECT_EQ(layer.experts[1].down.cols, 5U);
}

// Every matrix of both, read row by row; a mismatch names the matrix.
void expect_same_values(const Weights& a, const Weights& b, float tolerance) {
  const auto compare = [&](const Matrix& x, const Matrix& y, const char* name) {
    ASSERT_EQ(x.rows, y.rows) << name;
    ASSERT_EQ(x.cols, y.cols) << name;
    std::vector<float> left(x.cols);
    std::vector<float> right(x.cols);
    for (uint32_t row = 0; row < x.rows; ++row) {
      unpack_row(x, row, left.data());
      unpack_row(y, row, right.data());
      for (uint32_t i = 0; i < x.cols; ++i) ASSERT_NEAR(left[i], right[i], tolerance) << name << " row " << row;
    }
  };
  compare(a.embedding, b.embedding, "embedding");
  compare(a.lm_head, b.lm_head, "lm_head");
  for (size_t i = 0; i < a.layers.size(); ++i) {
    compare(a.layers[i].qkv, b.layers[i].qkv, "qkv");
    compare(a.layers[i].o, b.layers[i].o, "o");
    compare(a.layers[i].gate_up, b.layers[i].gate_up, "gate_up");
    compare(a.layers[i].down, b.layers[i].down, "down");
  }
}

TEST(LoadWeights, PacksWhatIsMultipliedWith) {
  ModelConfig config = small();
  config.intermediate_size = 6;
  Files files = complete(config);
  char next = 0;
  for (auto& [name, stored] : files) {
    for (size_t i = 0; i + 1 < stored.bytes.size(); i += 2) {  // finite numbers around 1
      stored.bytes[i] = ++next;
      stored.bytes[i + 1] = 0x3F;
    }
  }
  const TempDir dir;
  write_checkpoint(dir, files);
  for (const LoadFormat format : {LoadFormat::kSafetensors, LoadFormat::kDummy}) {
    auto plain = load_weights(config, dir.path(), {.format = format});
    auto packed = load_weights(config, dir.path(), {.format = format, .layout = MatrixLayout::kPackedBf16});
    auto int8 = load_weights(config, dir.path(), {.format = format, .layout = MatrixLayout::kPackedInt8});
    ASSERT_TRUE(plain.ok() && packed.ok() && int8.ok());
    EXPECT_EQ(packed->layout, MatrixLayout::kPackedBf16);
    EXPECT_EQ(packed->layers[0].qkv.layout, MatrixLayout::kPackedBf16);
    EXPECT_EQ(packed->lm_head.layout, MatrixLayout::kPackedBf16);
    EXPECT_EQ(packed->embedding.layout, MatrixLayout::kRowMajor) << "only its rows are read";
    EXPECT_EQ(int8->layers[0].down.layout, MatrixLayout::kPackedInt8);
    expect_same_values(*plain, *packed, 0.0F);
    expect_same_values(*plain, *int8, 0.02F);
  }
}

TEST(LoadWeights, PacksATiedEmbeddingOnce) {
  ModelConfig config = small();
  config.intermediate_size = 6;
  config.tie_embeddings = true;
  auto weights = load_weights(config, "", {.format = LoadFormat::kDummy, .layout = MatrixLayout::kPackedInt8});
  ASSERT_TRUE(weights.ok()) << weights.error().message;
  EXPECT_EQ(weights->embedding.layout, MatrixLayout::kPackedInt8);
  EXPECT_EQ(weights->embedding.data, weights->lm_head.data);
}

TEST(LoadWeights, OtherTypesAndOddWidthsStayRowMajor) {
  ModelConfig config = small();  // intermediate_size 3
  auto odd = load_weights(config, "", {.format = LoadFormat::kDummy, .layout = MatrixLayout::kPackedBf16});
  ASSERT_TRUE(odd.ok());
  EXPECT_EQ(odd->layout, MatrixLayout::kRowMajor);
  config.intermediate_size = 6;
  const TempDir dir;
  write_checkpoint(dir, complete(config, "F16"));
  auto half =
      load_weights(config, dir.path(), {.format = LoadFormat::kSafetensors, .layout = MatrixLayout::kPackedInt8});
  ASSERT_TRUE(half.ok());
  EXPECT_EQ(half->layout, MatrixLayout::kRowMajor);
  EXPECT_EQ(half->layers[0].qkv.layout, MatrixLayout::kRowMajor);
}

TEST(LoadWeights, MakesRepeatableDummies) {
  ModelConfig config = small();
  config.vocab_size = 1000;
  config.hidden_size = 128;
  auto a = load_weights(config, "/nowhere", {.format = LoadFormat::kDummy});
  auto b = load_weights(config, "", {.format = LoadFormat::kDummy});
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(bytes_of(a->embedding), bytes_of(b->embedding));
  EXPECT_EQ(a->layers[0].qkv.type, DataType::kBf16);
  EXPECT_EQ(a->final_norm[0], 1.0F);
  EXPECT_EQ(a->layers[0].qkv_bias[0], 0.0F);
  std::vector<std::string> rows;
  const std::string all = bytes_of(a->embedding);
  for (size_t r = 0; r < config.vocab_size; ++r) rows.push_back(all.substr(r * 256, 256));
  std::ranges::sort(rows);
  EXPECT_EQ(std::ranges::adjacent_find(rows), rows.end()) << "two rows alike";
}

// A model with matrices of several pieces, so that threads share them.
ModelConfig wide() {
  ModelConfig config = small();
  config.vocab_size = 40'000;
  config.hidden_size = 512;
  return config;
}

TEST(LoadWeights, ValuesDoNotDependOnTheNumberOfThreads) {
  const ModelConfig config = wide();
  Files files = complete(config);
  for (auto& [name, stored] : files) {
    for (size_t i = 0; i < stored.bytes.size(); ++i) stored.bytes[i] = static_cast<char>((i * 2'654'435'761U) >> 13);
  }
  const TempDir dir;
  write_checkpoint(dir, files);
  for (const LoadFormat format : {LoadFormat::kSafetensors, LoadFormat::kDummy}) {
    uint64_t last = 0;
    auto one = load_weights(config, dir.path(), {.format = format, .threads = 1});
    auto three = load_weights(config, dir.path(),
                              {.format = format, .threads = 3, .progress = [&](uint64_t done, uint64_t total) {
                                 EXPECT_GE(done, last);
                                 EXPECT_LE(done, total);
                                 last = done;
                               }});
    ASSERT_TRUE(one.ok() && three.ok());
    EXPECT_GT(last, uint64_t{config.vocab_size} * config.hidden_size * 2);
    EXPECT_EQ(bytes_of(one->embedding), bytes_of(three->embedding));
    EXPECT_EQ(bytes_of(one->layers[0].qkv), bytes_of(three->layers[0].qkv));
    EXPECT_EQ(bytes_of(one->lm_head), bytes_of(three->lm_head));
    if (format == LoadFormat::kSafetensors) {
      EXPECT_EQ(bytes_of(three->lm_head), files["lm_head.weight"].bytes);
    }
  }
}

TEST(MappedFile, PagesThatWereDroppedAreNoMemoryOfThisProcess) {
  constexpr size_t kSize = 16u << 20;
  const TempDir dir;
  dir.write("file", std::string(kSize, 'x'));
  auto file = MappedFile::open(dir / "file");
  ASSERT_TRUE(file.ok());
  const auto resident = [&] {
    std::ifstream smaps("/proc/self/smaps");
    uint64_t kib = 0;
    bool ours = false;
    for (std::string line; std::getline(smaps, line);) {
      if (line.find(dir / "file") != std::string::npos) ours = true;
      if (ours && line.starts_with("Rss:")) {
        kib = std::stoull(line.substr(4));
        break;
      }
    }
    return kib << 10;
  };
  EXPECT_EQ(std::ranges::count(file->bytes(), std::byte{'x'}), static_cast<ptrdiff_t>(kSize));
  EXPECT_EQ(resident(), kSize);
  file->drop(file->bytes().first(kSize / 2));
  EXPECT_LE(resident(), kSize / 2);
  file->drop(file->bytes().subspan(kSize / 2));
  EXPECT_EQ(resident(), 0U);
  EXPECT_EQ(file->bytes()[5], std::byte{'x'});
}

}  // namespace
}  // namespace dyn::native

// Times the kernels at the sizes of real models and says how far each is from what the machine gives.
//
//   cuda_kernels_bench [--json] [filter]     # filter: a part of a section's name (read, gemm, linear, decode, ...)
//
// Ceilings are measured in the same run: reading 4 GiB for what moves bytes, a cuBLASLt product of 8192^3 on random
// data for what computes. Kernels run inside CUDA graphs with dependent launch, as the executor runs them; weights
// rotate among buffers of several times the L2 cache. Times are medians. Needs a GPU of compute capability 9.0.
#include "native/exec/cuda/kernels/attention.h"
#include "native/exec/cuda/kernels/check_support.cuh"
#include "native/exec/cuda/kernels/elementwise.h"
#include "native/exec/cuda/kernels/linear.h"
#include "native/exec/cuda/kernels/read_probe.h"
#include "native/exec/cuda/kernels/sample.h"

namespace dyn::native::cuda {
namespace {

bool json = false;
double read_tb_s = 0;
double gemm_tflops = 0;

void print(const std::string& name, double us, double bytes, double flop) {
  const double tb_s = bytes / us * 1e-6;
  const double tflops = flop / us * 1e-6;
  if (json) {
    std::printf(
        "{\"name\": \"%s\", \"us\": %.2f, \"bytes\": %.0f, \"tb_s\": %.3f, \"of_read\": %.3f, \"tflops\": %.1f, "
        "\"of_gemm\": %.3f}\n",
        name.c_str(), us, bytes, tb_s, read_tb_s > 0 ? tb_s / read_tb_s : 0, tflops,
        gemm_tflops > 0 ? tflops / gemm_tflops : 0);
    return;
  }
  std::printf("%-52s %9.2f us", name.c_str(), us);
  if (bytes > 0) std::printf("  %6.3f TB/s %5.1f %%", tb_s, read_tb_s > 0 ? 100 * tb_s / read_tb_s : 0);
  if (flop > 0) std::printf("  %6.1f TFLOP/s %5.1f %%", tflops, gemm_tflops > 0 ? 100 * tflops / gemm_tflops : 0);
  std::printf("\n");
}

__global__ void fill_kernel(Bf16* to, size_t count, float scale) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint64_t x = (i + 1) * 0x9E37'79B9'7F4A'7C15ULL;
    x = (x ^ (x >> 30)) * 0xBF58'476D'1CE4'E5B9ULL;
    x ^= x >> 27;
    const float f = (static_cast<float>(x & 0xFFFF) / 32768.0F - 1.0F) * scale;
    to[i] = static_cast<Bf16>(__float_as_uint(f) >> 16);
  }
}

Device<Bf16> filled(size_t count, float scale) {
  Device<Bf16> d(count);
  fill_kernel<<<1024, 256>>>(d.get(), count, scale);
  require(cudaDeviceSynchronize(), "fill");
  return d;
}

// What `record` enqueues, as a graph, timed.
double graph_us(cudaStream_t stream, int repeats, const std::function<void(cudaStream_t)>& record) {
  record(stream);  // what is lazy happens outside of the capture
  require(cudaStreamSynchronize(stream), "warm-up");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  record(stream);
  require(cudaStreamEndCapture(stream, &graph), "capture");
  require(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  for (int i = 0; i < 3; ++i) require(cudaGraphLaunch(exec, stream), "launch");
  const double us = median_us(stream, repeats, [&] { require(cudaGraphLaunch(exec, stream), "launch"); });
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return us;
}

void bench_read(cudaStream_t stream) {
  const uint64_t bytes = 6ULL << 30;
  Device<Bf16> buffer = filled(bytes / 2, 1.0F);
  Device<float> sink(1 << 20);
  const double us =
      median_us(stream, 9, [&] { require(launch_read_probe(buffer.get(), bytes, sink.get(), stream), "read"); });
  read_tb_s = static_cast<double>(bytes) / us * 1e-6;
  print("read 6 GiB", us, static_cast<double>(bytes), 0);
}

void bench_gemm(Linear& linear, cudaStream_t stream) {
  const uint32_t n = 8192;
  Device<Bf16> x = filled(size_t{n} * n, 1.0F);
  Device<Bf16> w = filled(size_t{n} * n, 0.02F);
  Device<Bf16> y(size_t{n} * n);
  const LinearParams p{.x = x.get(), .weights = w.get(), .m = n, .n = n, .k = n, .y = y.get()};
  require(linear.tune(p, {.stream = stream}), "tune");
  const double us = median_us(stream, 9, [&] { require(linear.run(p, {.stream = stream}), "gemm"); });
  gemm_tflops = 2.0 * n * n * n / us * 1e-6;
  print("gemm 8192^3", us, 0, 2.0 * n * n * n);
}

struct ModelShape {
  const char* name;
  uint32_t hidden, layers, heads, kv_heads, dim, inner, vocab;
  bool qk_norm;
  [[nodiscard]] uint32_t qkv() const { return (heads + 2 * kv_heads) * dim; }
  [[nodiscard]] size_t layer_elements() const {
    return size_t{qkv()} * hidden + size_t{heads} * dim * hidden + size_t{3} * inner * hidden;
  }
};
constexpr ModelShape kModels[] = {{"qwen3-0.6b", 1024, 28, 16, 8, 128, 3072, 151936, true},
                                  {"qwen3-8b", 4096, 36, 32, 8, 128, 12288, 151936, true}};

// A decode step of a whole model.
struct Model {
  Model(const ModelShape& s, uint32_t rows, uint32_t context)
      : shape(s),
        rows(rows),
        context(context),
        weights(filled(s.layers * s.layer_elements(), 0.02F)),
        lm_head(filled(size_t{s.vocab} * s.hidden, 0.02F)),
        x(size_t{rows} * s.hidden),
        norm(std::vector<float>(s.hidden, 1.0F)),
        angles(std::vector<float>(size_t{rows} * s.dim, 0.5F)),
        logits(size_t{rows} * s.vocab),
        qkv(filled(size_t{rows} * s.qkv(), 1.0F)),
        attention(size_t{rows} * s.heads * s.dim),
        inner(size_t{rows} * s.inner),
        scratch(linear_scratch_elements(rows, s.inner, 2 * s.inner)),
        scores(size_t{rows} * s.vocab),
        list(size_t{rows} * s.vocab),
        tokens(rows),
        not_finite(rows),
        pieces(sample_pieces_bytes(rows, s.vocab)),
        sampling(std::vector<SampleRowParams>(rows)) {
    x.put(std::vector<float>(size_t{rows} * s.hidden, 0.3F));
    std::vector<SampleRowParams> row_params(rows);
    for (uint32_t r = 0; r < rows; ++r) row_params[r] = {.seed = r, .temperature = 0.0F, .logits_row = r};
    sampling.put(row_params);
    const uint32_t pages_a_row = (context + 31) / 32;
    page_elements = size_t{s.layers} * 2 * s.kv_heads * 32 * s.dim;
    pool = filled(page_elements * pages_a_row * rows, 1.0F);
    std::vector<int32_t> table(size_t{rows} * pages_a_row);
    Rng rng(1);
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
    std::shuffle(table.begin(), table.end(), rng);
    std::vector<uint32_t> starts(rows + 1);
    for (uint32_t r = 0; r <= rows; ++r) starts[r] = r * pages_a_row;
    pages = Device<int32_t>(table);
    offsets = Device<uint32_t>(starts);
    lengths = Device<int32_t>(std::vector<int32_t>(rows, static_cast<int32_t>(context)));
    splits = decode_splits(rows, s.heads, s.kv_heads, 132, context);
    partials = Device<float>(decode_workspace_floats(rows, s.heads, s.dim, splits));
    arrivals = Device<uint32_t>(size_t{rows} * s.heads);
    arrivals.clear();
  }

  void attend(uint32_t layer, const Launch& on) {
    const size_t at = size_t{layer} * 2 * shape.kv_heads * 32 * shape.dim;
    const float* head_norm = shape.qk_norm ? norm.get() : nullptr;
    require(launch_decode_attention({.qkv = qkv.get(),
                                     .qkv_stride = shape.qkv(),
                                     .q_norm = head_norm,
                                     .k_norm = head_norm,
                                     .angles = angles.get(),
                                     .context_lens = lengths.get(),
                                     .pages = pages.get(),
                                     .page_offsets = offsets.get(),
                                     .kv = {.keys = pool.get() + at,
                                            .values = pool.get() + at + size_t{shape.kv_heads} * 32 * shape.dim,
                                            .page_stride = page_elements,
                                            .head_stride = size_t{32} * shape.dim,
                                            .tokens_per_page = 32,
                                            .kv_heads = shape.kv_heads},
                                     .out = attention.get(),
                                     .partials = partials.get(),
                                     .arrivals = arrivals.get(),
                                     .rows = rows,
                                     .heads = shape.heads,
                                     .head_dim = shape.dim,
                                     .half = shape.dim / 2,
                                     .splits = splits,
                                     .scale = 0.088F},
                                    on),
            "attention");
  }

  void step(Linear& linear, cudaStream_t stream, bool overlap) {
    const ModelShape& s = shape;
    const uint32_t q = s.heads * s.dim;
    const Launch first{.stream = stream, .overlap = false};
    const Launch on{.stream = stream, .overlap = overlap};
    const Bf16* w = weights.get();
    for (uint32_t l = 0; l < s.layers; ++l) {
      require(linear.run({.x_f32 = x.get(),
                          .norm_weight = norm.get(),
                          .weights = w,
                          .m = rows,
                          .n = s.qkv(),
                          .k = s.hidden,
                          .y = qkv.get(),
                          .scratch = scratch.get()},
                         l == 0 ? first : on),
              "qkv");
      w += size_t{s.qkv()} * s.hidden;
      attend(l, on);
      require(linear.run({.x = attention.get(),
                          .weights = w,
                          .m = rows,
                          .n = s.hidden,
                          .k = q,
                          .output = LinearOutput::kAddF32,
                          .y = x.get(),
                          .scratch = scratch.get()},
                         on),
              "o");
      w += size_t{q} * s.hidden;
      require(linear.run({.x_f32 = x.get(),
                          .norm_weight = norm.get(),
                          .weights = w,
                          .m = rows,
                          .n = 2 * s.inner,
                          .k = s.hidden,
                          .output = LinearOutput::kGatedBf16,
                          .y = inner.get(),
                          .scratch = scratch.get()},
                         on),
              "gate-up");
      w += size_t{2} * s.inner * s.hidden;
      require(linear.run({.x = inner.get(),
                          .weights = w,
                          .m = rows,
                          .n = s.hidden,
                          .k = s.inner,
                          .output = LinearOutput::kAddF32,
                          .y = x.get(),
                          .scratch = scratch.get()},
                         on),
              "down");
      w += size_t{s.inner} * s.hidden;
    }
    require(linear.run({.x_f32 = x.get(),
                        .norm_weight = norm.get(),
                        .weights = lm_head.get(),
                        .m = rows,
                        .n = s.vocab,
                        .k = s.hidden,
                        .output = LinearOutput::kF32,
                        .y = logits.get(),
                        .scratch = scratch.get()},
                       on),
            "lm head");
    sample(on);
  }

  void sample(const Launch& on) {
    require(launch_sample({.logits = logits.get(),
                           .rows = sampling.get(),
                           .scores = scores.get(),
                           .list = list.get(),
                           .pieces = pieces.get(),
                           .tokens = tokens.get(),
                           .not_finite = not_finite.get(),
                           .num_rows = rows,
                           .vocab = shape.vocab},
                          on),
            "sample");
  }

  [[nodiscard]] double bytes() const {
    const ModelShape& s = shape;
    return 2.0 * (s.layers * s.layer_elements() + size_t{s.vocab} * s.hidden) +
           4.0 * s.layers * s.kv_heads * s.dim * context * rows;
  }

  ModelShape shape;
  uint32_t rows, context, splits = 1;
  size_t page_elements = 0;
  Device<Bf16> weights, lm_head;
  Device<float> x, norm, angles, logits;
  Device<Bf16> qkv, attention, inner, scratch;
  Device<float> scores;
  Device<uint32_t> list, tokens;
  Device<uint8_t> not_finite;
  Device<std::byte> pieces;
  Device<SampleRowParams> sampling;
  Device<Bf16> pool;
  Device<int32_t> pages, lengths;
  Device<uint32_t> offsets, arrivals;
  Device<float> partials;
};

void bench_step(Linear& linear, cudaStream_t stream) {
  for (const ModelShape& s : kModels) {
    for (const uint32_t rows : {1U, 4U, 8U, 16U, 32U, 64U}) {
      for (const uint32_t context : {128U, 1024U}) {
        if (context != 1024 && rows != 1) continue;
        Model model(s, rows, context);
        for (const bool overlap : {false, true}) {
          if (!overlap && rows != 1) continue;
          const double us = graph_us(stream, 15, [&](cudaStream_t on) { model.step(linear, on, overlap); });
          print(std::string("step ") + s.name + " rows=" + std::to_string(rows) +
                    " context=" + std::to_string(context) + (overlap ? "" : " no overlap"),
                us, model.bytes(), 0);
        }
      }
    }
  }
}

// One kind of layer, weights of all layers in turn.
void bench_linear(Linear& linear, cudaStream_t stream) {
  for (const ModelShape& s : kModels) {
    const uint32_t q = s.heads * s.dim;
    const struct {
      const char* name;
      uint32_t n, k;
      LinearOutput output;
      bool normed;
    } layers[] = {{"qkv", s.qkv(), s.hidden, LinearOutput::kBf16, true},
                  {"o", s.hidden, q, LinearOutput::kAddF32, false},
                  {"gate-up", 2 * s.inner, s.hidden, LinearOutput::kGatedBf16, true},
                  {"down", s.hidden, s.inner, LinearOutput::kAddF32, false},
                  {"head", s.vocab, s.hidden, LinearOutput::kF32, true}};
    for (const auto& layer : layers) {
      const size_t elements = size_t{layer.n} * layer.k;
      const auto copies = static_cast<uint32_t>(std::clamp<size_t>((400ULL << 20) / elements, 2, 40));
      Device<Bf16> w = filled(copies * elements, 0.02F);
      for (const uint32_t m : {1U, 2U, 4U, 8U, 16U, 24U, 32U, 48U, 64U, 128U}) {
        Device<Bf16> x16 = filled(size_t{m} * layer.k, 1.0F);
        Device<float> x32(std::vector<float>(size_t{m} * layer.k, 0.5F));
        Device<float> norm(std::vector<float>(layer.k, 1.0F));
        Device<float> y(size_t{m} * layer.n);
        y.clear();
        Device<Bf16> scratch(linear_scratch_elements(m, layer.k, layer.n));
        for (const Linear::Path path : {Linear::Path::kSmall, Linear::Path::kLarge}) {
          const bool small = path == Linear::Path::kSmall;
          if (small ? m > 32 : m < 8) continue;
          auto params = [&](uint32_t copy) {
            LinearParams p{.weights = w.get() + copy * elements,
                           .m = m,
                           .n = layer.n,
                           .k = layer.k,
                           .output = layer.output,
                           .y = y.get(),
                           .scratch = scratch.get()};
            if (layer.normed) {
              p.x_f32 = x32.get();
              p.norm_weight = norm.get();
            } else {
              p.x = x16.get();
            }
            return p;
          };
          if (linear.run(params(0), {.stream = stream}, path) == cudaErrorNotSupported) continue;
          if (!small) require(linear.tune(params(0), {.stream = stream}), "tune");
          const double us = graph_us(stream, 7, [&](cudaStream_t on) {
            for (uint32_t c = 0; c < copies; ++c) {
              require(linear.run(params(c), {.stream = on, .overlap = c != 0}, path), "linear");
            }
          });
          print(std::string("linear ") + s.name + " " + layer.name + " m=" + std::to_string(m) +
                    (small ? " small" : " large"),
                us / copies, 2.0 * static_cast<double>(elements), 0);
        }
      }
    }
  }
}

void bench_decode(cudaStream_t stream) {
  ModelShape s = kModels[1];
  s.layers = 2;
  s.hidden = 64;
  s.inner = 64;
  s.vocab = 64;
  for (const uint32_t heads : {16U, 32U, 64U}) {
    s.heads = heads;
    for (const auto& [rows, context] : {std::pair{1U, 1024U},
                                        {1U, 8192U},
                                        {8U, 2048U},
                                        {32U, 1024U},
                                        {32U, 4096U},
                                        {64U, 1024U},
                                        {64U, 2048U},
                                        {32U, 8192U},
                                        {128U, 1024U}}) {
      Model model(s, rows, context);
      const uint32_t chosen = model.splits;
      for (const uint32_t splits : {0U, 1U, 2U, 3U, 4U, 8U, 16U, 32U}) {
        if (splits != 0 && heads != 32) continue;
        model.splits = splits == 0 ? chosen : splits;
        model.partials = Device<float>(decode_workspace_floats(rows, s.heads, s.dim, model.splits));
        const double us = graph_us(stream, 9, [&](cudaStream_t on) {
          for (uint32_t i = 0; i < 8; ++i) model.attend(i % 2, {.stream = on, .overlap = i != 0});
        });
        print("decode heads=" + std::to_string(heads) + "/8 rows=" + std::to_string(rows) +
                  " context=" + std::to_string(context) + " splits=" + std::to_string(model.splits),
              us / 8, 4.0 * s.kv_heads * s.dim * context * rows, 0);
      }
    }
  }
}

void bench_prefill(cudaStream_t stream) {
  for (const auto& [heads, kv_heads, dim] :
       {std::tuple{32U, 8U, 128U}, {16U, 8U, 128U}, {32U, 8U, 64U}, {8U, 4U, 256U}}) {
    for (const uint32_t length : {1024U, 2048U, 8192U, 16384U}) {
      const uint32_t width = (heads + 2 * kv_heads) * dim;
      Device<Bf16> qkv = filled(size_t{length} * width, 1.0F);
      Device<Bf16> out(size_t{length} * heads * dim);
      const uint32_t pages = length / 32;
      const size_t page = size_t{2} * kv_heads * 32 * dim;
      Device<Bf16> pool = filled(pages * page, 1.0F);
      std::vector<int32_t> table(pages);
      for (uint32_t i = 0; i < pages; ++i) table[i] = static_cast<int32_t>(i * 7 % pages);
      Device<int32_t> dpages(table), lengths(std::vector<int32_t>{static_cast<int32_t>(length)});
      const std::vector<uint32_t> rows{0, length};
      Device<uint32_t> row_offsets(rows), page_offsets(std::vector<uint32_t>{0, pages});
      std::vector<PrefillTile> tiles;
      plan_prefill(rows, std::vector<int32_t>{static_cast<int32_t>(length)}, heads / kv_heads, {}, tiles);
      Device<PrefillTile> dtiles(tiles);
      const PrefillAttentionParams p{.qkv = qkv.get(),
                                     .qkv_stride = width,
                                     .row_offsets = row_offsets.get(),
                                     .context_lens = lengths.get(),
                                     .pages = dpages.get(),
                                     .page_offsets = page_offsets.get(),
                                     .tiles = dtiles.get(),
                                     .kv = {.keys = pool.get(),
                                            .values = pool.get() + page / 2,
                                            .page_stride = page,
                                            .head_stride = size_t{32} * dim,
                                            .tokens_per_page = 32,
                                            .kv_heads = kv_heads},
                                     .out = out.get(),
                                     .num_tiles = static_cast<uint32_t>(tiles.size()),
                                     .heads = heads,
                                     .head_dim = dim,
                                     .scale = 1.0F / std::sqrt(float(dim))};
      const double us =
          median_us(stream, 9, [&] { require(launch_prefill_attention(p, {.stream = stream}), "prefill"); });
      print("prefill heads=" + std::to_string(heads) + "/" + std::to_string(kv_heads) + " d=" + std::to_string(dim) +
                " length=" + std::to_string(length),
            us, 0, 2.0 * heads * dim * length * length);
    }
  }
}

void bench_sample(cudaStream_t stream) {
  const uint32_t vocab = kModels[0].vocab;
  for (const uint32_t rows : {1U, 64U}) {
    Device<float> logits(size_t{rows} * vocab), scores(size_t{rows} * vocab);
    Rng rng(3);
    logits.put(random_floats(rng, size_t{rows} * vocab, 3.0F));
    Device<uint32_t> list(size_t{rows} * vocab), tokens(rows);
    Device<uint8_t> not_finite(rows);
    Device<std::byte> pieces(sample_pieces_bytes(rows, vocab));
    Device<TopLogprobOut> top(size_t{rows} * kMaxTopLogprobs);
    const std::pair<const char*, SampleRowParams> kinds[] = {
        {"greedy", {.temperature = 0.0F}},
        {"temperature", {.temperature = 0.8F}},
        {"top-k 50", {.temperature = 0.8F, .top_k = 50}},
        {"top-p 0.9", {.temperature = 0.8F, .top_p = 0.9F}},
        {"top-k, top-p", {.temperature = 0.8F, .top_k = 50, .top_p = 0.9F}},
        {"greedy, 5 logprobs", {.temperature = 0.0F, .logprobs = 5}}};
    for (const auto& [name, kind] : kinds) {
      std::vector<SampleRowParams> all(rows, kind);
      for (uint32_t r = 0; r < rows; ++r) {
        all[r].seed = r;
        all[r].logits_row = r;
      }
      Device<SampleRowParams> params(all);
      const double us = graph_us(stream, 9, [&](cudaStream_t on) {
        for (int i = 0; i < 8; ++i) {
          require(launch_sample({.logits = logits.get(),
                                 .rows = params.get(),
                                 .scores = scores.get(),
                                 .list = list.get(),
                                 .pieces = pieces.get(),
                                 .tokens = tokens.get(),
                                 .top = top.get(),
                                 .not_finite = not_finite.get(),
                                 .num_rows = rows,
                                 .vocab = vocab},
                                {.stream = on, .overlap = i != 0}),
                  "sample");
        }
      });
      print(std::string("sample rows=") + std::to_string(rows) + " " + name, us / 8, 4.0 * vocab * rows, 0);
    }
  }
}

}  // namespace

void bench(const std::string& filter) {
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  Linear linear;
  require(linear.init(false), "Linear::init");
  auto wanted = [&](const char* section) { return std::string(section).find(filter) != std::string::npos; };
  bench_read(stream);
  bench_gemm(linear, stream);
  if (wanted("step")) bench_step(linear, stream);
  if (wanted("decode")) bench_decode(stream);
  if (wanted("prefill")) bench_prefill(stream);
  if (wanted("sample")) bench_sample(stream);
  if (wanted("linear")) bench_linear(linear, stream);
  require(cudaDeviceSynchronize(), "benchmark");
}

}  // namespace dyn::native::cuda

int main(int argc, char** argv) {
  std::string filter;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--json") {
      dyn::native::cuda::json = true;
    } else {
      filter = argv[i];
    }
  }
  dyn::native::cuda::bench(filter);
  return 0;
}

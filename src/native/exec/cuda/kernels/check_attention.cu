#include <numeric>

#include "native/exec/cuda/kernels/attention.h"
#include "native/exec/cuda/kernels/elementwise.h"
#include "native/exec/cuda/kernels/kernels_check.cuh"

namespace dyn::native::cuda {
namespace {

// A ragged batch over a page pool, and what attention gives for it in double precision.
struct Batch {
  uint32_t heads, kv_heads, dim, tokens_per_page, window, half;
  float soft_cap;
  bool norms;
  std::vector<uint32_t> row_offsets{0};
  std::vector<int32_t> context_lens;
  std::vector<int32_t> pages;
  std::vector<uint32_t> page_offsets{0};
  std::vector<int32_t> positions;
  std::vector<int64_t> kv_slots;
  std::vector<Bf16> pool, qkv;
  std::vector<float> q_norm, k_norm, frequencies;
  size_t page_stride = 0;
  size_t layer_at = 0;

  [[nodiscard]] uint32_t width() const { return (heads + 2 * kv_heads) * dim; }
  [[nodiscard]] size_t value_offset() const { return size_t{kv_heads} * tokens_per_page * dim; }
  [[nodiscard]] float scale() const { return 1.0F / std::sqrt(float(dim)); }

  void build(Rng& rng, const std::vector<std::pair<uint32_t, uint32_t>>& rows) {  // context, new tokens
    constexpr uint32_t kLayers = 2;
    page_stride = kLayers * 2 * value_offset();
    layer_at = 2 * value_offset();
    uint32_t total_pages = 3;
    for (const auto& [context, fresh] : rows) total_pages += (context + tokens_per_page - 1) / tokens_per_page;
    std::vector<int32_t> free(total_pages);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), rng);
    pool = random_bf16(rng, total_pages * page_stride, 1.0F);
    // What stands behind a row's last token must not matter, not even NaN.
    for (const auto& [context, fresh] : rows) {
      const auto first = static_cast<uint32_t>(pages.size());
      for (uint32_t p = 0; p * tokens_per_page < context; ++p) {
        pages.push_back(free.back());
        free.pop_back();
      }
      for (uint32_t p = context; p % tokens_per_page != 0; ++p) {
        for (uint32_t h = 0; h < kv_heads; ++h) {
          const size_t at =
              size_t(pages.back()) * page_stride + layer_at + (h * tokens_per_page + p % tokens_per_page) * dim;
          std::fill_n(pool.begin() + at, dim, Bf16{0x7FC0});
          std::fill_n(pool.begin() + at + value_offset(), dim, Bf16{0x7FC0});
        }
      }
      for (uint32_t i = 0; i < fresh; ++i) {
        const uint32_t position = context - fresh + i;
        positions.push_back(int32_t(position));
        kv_slots.push_back(int64_t{pages[first + position / tokens_per_page]} * tokens_per_page +
                           position % tokens_per_page);
      }
      row_offsets.push_back(row_offsets.back() + fresh);
      context_lens.push_back(int32_t(context));
      // Pages that the window has left behind are gone.
      if (window != 0) {
        const uint32_t lowest = context - fresh + 1 > window ? context - fresh + 1 - window : 0;
        for (uint32_t p = 0; (p + 1) * tokens_per_page <= lowest; ++p) pages[first + p] = -1;
      }
      page_offsets.push_back(uint32_t(pages.size()));
    }
    qkv = random_bf16(rng, size_t{row_offsets.back()} * width(), 1.0F);
    q_norm = random_floats(rng, dim, 0.2F, 1.0F);
    k_norm = random_floats(rng, dim, 0.2F, 1.0F);
    for (uint32_t i = 0; i < half; ++i) frequencies.push_back(std::pow(10000.0F, -float(i) / float(half)));
  }

  // Norm, rotation, rounding of one head.
  [[nodiscard]] std::vector<double> finish(const Bf16* from, const std::vector<float>* norm, int32_t position) const {
    std::vector<double> x(dim);
    double sum = 0;
    for (uint32_t i = 0; i < dim; ++i) {
      x[i] = widen(from[i]);
      sum += x[i] * x[i];
    }
    if (norm != nullptr) {
      for (uint32_t i = 0; i < dim; ++i) x[i] *= (*norm)[i] / std::sqrt(sum / dim + 1e-6);
    }
    std::vector<double> y = x;
    for (uint32_t i = 0; i < half; ++i) {
      const double angle = float(position) * frequencies[i];
      y[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
      y[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
    }
    for (double& v : y) v = widen(narrow(float(v)));
    return y;
  }

  // Writes the new keys and values into `pool` and returns attention's output.
  std::vector<double> reference() {
    std::vector<double> out(size_t{row_offsets.back()} * heads * dim);
    const uint32_t group = heads / kv_heads;
    for (size_t t = 0; t < positions.size(); ++t) {
      for (uint32_t h = 0; h < kv_heads; ++h) {
        const Bf16* key = qkv.data() + t * width() + (heads + h) * dim;
        const std::vector<double> k = finish(key, norms ? &k_norm : nullptr, positions[t]);
        const size_t at = size_t(kv_slots[t]) / tokens_per_page * page_stride + layer_at +
                          (h * tokens_per_page + size_t(kv_slots[t]) % tokens_per_page) * dim;
        for (uint32_t i = 0; i < dim; ++i) {
          pool[at + i] = narrow(float(k[i]));
          pool[at + value_offset() + i] = key[size_t{kv_heads} * dim + i];
        }
      }
    }
    for (size_t r = 0; r < context_lens.size(); ++r) {
      for (uint32_t t = row_offsets[r]; t < row_offsets[r + 1]; ++t) {
        for (uint32_t h = 0; h < heads; ++h) {
          const std::vector<double> q =
              finish(qkv.data() + size_t{t} * width() + h * dim, norms ? &q_norm : nullptr, positions[t]);
          const int32_t last = positions[t];
          const int32_t begin = window != 0 ? std::max(0, last + 1 - int32_t(window)) : 0;
          std::vector<double> s;
          double best = -1e300;
          auto at = [&](int32_t p) {
            return size_t(pages[page_offsets[r] + p / tokens_per_page]) * page_stride + layer_at +
                   (h / group * tokens_per_page + p % tokens_per_page) * dim;
          };
          for (int32_t p = begin; p <= last; ++p) {
            double dot = 0;
            for (uint32_t i = 0; i < dim; ++i) dot += q[i] * widen(pool[at(p) + i]);
            dot *= scale();
            if (soft_cap > 0) dot = soft_cap * std::tanh(dot / soft_cap);
            s.push_back(dot);
            best = std::max(best, dot);
          }
          double sum = 0;
          for (double& v : s) sum += v = std::exp(v - best);
          double* to = out.data() + (size_t{t} * heads + h) * dim;
          for (int32_t p = begin; p <= last; ++p) {
            for (uint32_t i = 0; i < dim; ++i) to[i] += s[p - begin] / sum * widen(pool[at(p) + value_offset() + i]);
          }
        }
      }
    }
    return out;
  }
};

struct OnDevice {
  explicit OnDevice(const Batch& b)
      : pool(b.pool),
        qkv(b.qkv),
        row_offsets(b.row_offsets),
        page_offsets(b.page_offsets),
        context_lens(b.context_lens),
        pages(b.pages),
        positions(b.positions),
        kv_slots(b.kv_slots),
        q_norm(b.q_norm),
        k_norm(b.k_norm),
        frequencies(b.frequencies),
        angles(b.positions.size() * 2 * b.half),
        out(b.positions.size() * b.heads * b.dim) {
    kv = {.keys = pool.get() + b.layer_at,
          .values = pool.get() + b.layer_at + b.value_offset(),
          .page_stride = b.page_stride,
          .head_stride = size_t{b.tokens_per_page} * b.dim,
          .tokens_per_page = b.tokens_per_page,
          .kv_heads = b.kv_heads};
    require(launch_rotary_angles({.positions = positions.get(),
                                  .frequencies = frequencies.get(),
                                  .angles = angles.get(),
                                  .num_tokens = uint32_t(b.positions.size()),
                                  .half = b.half},
                                 {}),
            "angles");
  }
  Device<Bf16> pool, qkv;
  Device<uint32_t> row_offsets, page_offsets;
  Device<int32_t> context_lens, pages, positions;
  Device<int64_t> kv_slots;
  Device<float> q_norm, k_norm, frequencies, angles;
  Device<Bf16> out;
  KvLayout kv;
};

double pool_error(const std::vector<Bf16>& got, const std::vector<Bf16>& expected) {
  // New keys are rounded after a rotation in single precision: a unit in the last place is no defect.
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;
    const double d =
        std::abs(widen(got[i]) - widen(expected[i])) / std::max(1e-2, std::abs(double(widen(expected[i]))));
    worst = std::isnan(d) ? 1e9 : std::max(worst, d);
  }
  return worst;
}

struct Shape {
  uint32_t heads, kv_heads, dim, tokens_per_page, window;
  float soft_cap;
  bool norms;
  uint32_t half;
};

std::string describe(const char* what, const Shape& s) {
  char name[128];
  std::snprintf(name, sizeof(name), "%s h=%u/%u d=%u page=%u window=%u cap=%g", what, s.heads, s.kv_heads, s.dim,
                s.tokens_per_page, s.window, double(s.soft_cap));
  return name;
}

const Shape kShapes[] = {
    {16, 8, 128, 32, 0, 0, true, 64},    {32, 8, 128, 32, 0, 0, false, 64}, {8, 8, 64, 16, 0, 0, false, 32},
    {4, 1, 256, 32, 100, 0, true, 128},  {14, 2, 64, 32, 0, 0, false, 32},  {32, 32, 96, 64, 50, 0, false, 48},
    {8, 4, 80, 32, 0, 30.0F, false, 40}, {16, 1, 128, 32, 0, 0, false, 64}, {8, 4, 256, 16, 70, 50.0F, false, 128},
    {6, 2, 96, 32, 0, 0, false, 36},
};

Batch make_batch(const Shape& s) {
  Batch b{};
  b.heads = s.heads;
  b.kv_heads = s.kv_heads;
  b.dim = s.dim;
  b.tokens_per_page = s.tokens_per_page;
  b.window = s.window;
  b.half = s.half;
  b.soft_cap = s.soft_cap;
  b.norms = s.norms;
  b.row_offsets = {0};
  b.page_offsets = {0};
  return b;
}

}  // namespace

void check_decode_attention() {
  for (const Shape& s : kShapes) {
    for (const uint32_t splits : {1U, 3U, 40U}) {
      Rng rng(s.heads * 100 + splits);
      Batch b = make_batch(s);
      b.build(rng, {{1, 1}, {2, 1}, {17, 1}, {64, 1}, {333, 1}, {1500, 1}});
      OnDevice d(b);
      const auto rows = static_cast<uint32_t>(b.context_lens.size());
      const uint32_t groups = (s.heads / s.kv_heads + kDecodeGroup - 1) / kDecodeGroup;
      Device<float> partials(decode_workspace_floats(rows, s.heads, s.dim, splits));
      Device<uint32_t> arrivals(rows * s.kv_heads * groups);
      arrivals.clear();
      const DecodeAttentionParams p{.qkv = d.qkv.get(),
                                    .qkv_stride = b.width(),
                                    .q_norm = s.norms ? d.q_norm.get() : nullptr,
                                    .k_norm = s.norms ? d.k_norm.get() : nullptr,
                                    .angles = d.angles.get(),
                                    .context_lens = d.context_lens.get(),
                                    .pages = d.pages.get(),
                                    .page_offsets = d.page_offsets.get(),
                                    .kv = d.kv,
                                    .out = d.out.get(),
                                    .partials = partials.get(),
                                    .arrivals = arrivals.get(),
                                    .rows = rows,
                                    .heads = s.heads,
                                    .head_dim = s.dim,
                                    .half = s.half,
                                    .splits = splits,
                                    .window = s.window,
                                    .scale = b.scale(),
                                    .soft_cap = s.soft_cap};
      // Twice: the second run finds the arrivals as the first left them, and the same new tokens.
      for (int i = 0; i < 2; ++i) require(launch_decode_attention(p, {.stream = nullptr, .overlap = i == 1}), "decode");
      const std::vector<double> expected = b.reference();
      const std::string name = describe("decode", s) + " splits=" + std::to_string(splits);
      report(name, relative_error(widen(d.out.host()), expected), 8e-3);
      report(name + " kv", pool_error(d.pool.host(), b.pool), 1e-2);
    }
  }
}

void check_prefill_attention() {
  for (const Shape& s : kShapes) {
    Rng rng(s.heads);
    Batch b = make_batch(s);
    b.build(rng, {{1, 1}, {130, 130}, {333, 7}, {200, 1}, {300, 90}, {65, 64}});
    OnDevice d(b);
    require(launch_finish_qkv({.qkv = d.qkv.get(),
                               .q_norm = s.norms ? d.q_norm.get() : nullptr,
                               .k_norm = s.norms ? d.k_norm.get() : nullptr,
                               .angles = d.angles.get(),
                               .kv_slots = d.kv_slots.get(),
                               .kv = d.kv,
                               .num_tokens = uint32_t(b.positions.size()),
                               .heads = s.heads,
                               .head_dim = s.dim,
                               .half = s.half},
                              {.stream = nullptr, .overlap = true}),
            "finish_qkv");
    std::vector<PrefillTile> tiles;
    plan_prefill(b.row_offsets, b.context_lens, s.heads / s.kv_heads, {}, tiles);
    Device<PrefillTile> dtiles(tiles);
    require(launch_prefill_attention({.qkv = d.qkv.get(),
                                      .qkv_stride = b.width(),
                                      .row_offsets = d.row_offsets.get(),
                                      .context_lens = d.context_lens.get(),
                                      .pages = d.pages.get(),
                                      .page_offsets = d.page_offsets.get(),
                                      .tiles = dtiles.get(),
                                      .kv = d.kv,
                                      .out = d.out.get(),
                                      .num_tiles = uint32_t(tiles.size()),
                                      .heads = s.heads,
                                      .head_dim = s.dim,
                                      .window = s.window,
                                      .scale = b.scale(),
                                      .soft_cap = s.soft_cap},
                                     {.stream = nullptr, .overlap = true}),
            "prefill");
    const std::vector<double> expected = b.reference();
    report(describe("prefill", s), relative_error(widen(d.out.host()), expected), 8e-3);
    report(describe("prefill kv", s), pool_error(d.pool.host(), b.pool), 1e-2);
  }
}

}  // namespace dyn::native::cuda

#include "native/exec/cuda/kernels/elementwise.h"
#include "native/exec/cuda/kernels/experts.h"
#include "native/exec/cuda/kernels/kernels_check.cuh"
#include "native/exec/cuda/kernels/linear.h"

namespace dyn::native::cuda {
namespace {

double activate(GatedActivation a, double x) {
  if (a == GatedActivation::kSilu) return x / (1 + std::exp(-x));
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

std::vector<double> norm_reference(const std::vector<float>& x, const std::vector<float>& weight, size_t rows,
                                   float eps) {
  const size_t size = weight.size();
  std::vector<double> y(rows * size);
  for (size_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (size_t i = 0; i < size; ++i) sum += double(x[r * size + i]) * x[r * size + i];
    const double f = 1 / std::sqrt(sum / size + eps);
    for (size_t i = 0; i < size; ++i) y[r * size + i] = x[r * size + i] * f * weight[i];
  }
  return y;
}

std::vector<double> multiply(const std::vector<double>& x, const std::vector<Bf16>& w, size_t m, size_t n, size_t k) {
  std::vector<double> y(m * n);
  const std::vector<float> wide = widen(w);
  for (size_t r = 0; r < m; ++r) {
    for (size_t c = 0; c < n; ++c) {
      double sum = 0;
      for (size_t i = 0; i < k; ++i) sum += x[r * k + i] * wide[c * k + i];
      y[r * n + c] = sum;
    }
  }
  return y;
}

struct Case {
  uint32_t m, n, k;
  LinearOutput output;
  bool normed;
  bool bias;
  GatedActivation activation = GatedActivation::kSilu;
};

void check_case(Linear& linear, const Case& c, Linear::Path path, bool overlap) {
  Rng rng(c.m * 1000003 + c.n * 101 + c.k);
  const bool gated = c.output == LinearOutput::kGatedBf16;
  const uint32_t source_rows = c.m + 3;
  const std::vector<Bf16> w = random_bf16(rng, size_t{c.n} * c.k, 0.05F);
  const std::vector<float> bias = random_floats(rng, c.n, 0.5F);
  const std::vector<Bf16> x = random_bf16(rng, size_t{c.m} * c.k, 1.0F);
  const std::vector<float> xf = random_floats(rng, size_t{source_rows} * c.k, 3.0F);
  const std::vector<float> norm = random_floats(rng, c.k, 0.2F, 1.0F);
  std::vector<int32_t> rows(c.m);
  for (uint32_t i = 0; i < c.m; ++i) rows[i] = static_cast<int32_t>((i * 7 + 2) % source_rows);

  std::vector<double> input;
  if (c.normed) {
    std::vector<float> picked;
    for (const int32_t r : rows) picked.insert(picked.end(), xf.begin() + r * c.k, xf.begin() + (r + 1) * c.k);
    input = norm_reference(picked, norm, c.m, 1e-6F);
  } else {
    const std::vector<float> wide = widen(x);
    input.assign(wide.begin(), wide.end());
  }
  std::vector<double> expected = multiply(input, w, c.m, c.n, c.k);
  if (c.bias) {
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += bias[i % c.n];
  }
  const uint32_t out_n = gated ? c.n / 2 : c.n;
  if (gated) {
    std::vector<double> inner(size_t{c.m} * out_n);
    for (size_t r = 0; r < c.m; ++r) {
      for (size_t i = 0; i < out_n; ++i) {
        inner[r * out_n + i] = activate(c.activation, expected[r * c.n + i]) * expected[r * c.n + out_n + i];
      }
    }
    expected = inner;
  }
  const std::vector<float> before = random_floats(rng, size_t{c.m} * out_n, 2.0F);
  const bool is_float = c.output == LinearOutput::kF32 || c.output == LinearOutput::kAddF32;
  Device<Bf16> y16(is_float ? 0 : before.size());
  Device<float> y32(is_float ? before.size() : 0);
  if (c.output == LinearOutput::kAddF32) {
    y32.put(before);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
  }
  Device<Bf16> dw(w), dx(x), scratch(linear_scratch_elements(c.m, c.k, c.n));
  Device<float> dbias(bias), dnorm(norm), dxf(xf);
  Device<int32_t> drows(rows);
  LinearParams p{.weights = dw.get(),
                 .bias = c.bias ? dbias.get() : nullptr,
                 .m = c.m,
                 .n = c.n,
                 .k = c.k,
                 .output = c.output,
                 .activation = c.activation,
                 .y = is_float ? static_cast<void*>(y32.get()) : static_cast<void*>(y16.get()),
                 .scratch = scratch.get()};
  if (c.normed) {
    p.x_f32 = dxf.get();
    p.norm_weight = dnorm.get();
    p.input_rows = drows.get();
  } else {
    p.x = dx.get();
  }
  const cudaError_t error = linear.run(p, {.stream = nullptr, .overlap = overlap}, path);
  if (error == cudaErrorNotSupported && path == Linear::Path::kSmall) {
    std::printf("skip linear m=%u n=%u k=%u small: the input does not fit\n", c.m, c.n, c.k);
    return;
  }
  require(error, "linear");
  const std::vector<float> out = is_float ? y32.host() : widen(y16.host());
  char name[128];
  std::snprintf(name, sizeof(name), "linear m=%u n=%u k=%u out=%d%s%s %s%s", c.m, c.n, c.k, int(c.output),
                c.normed ? " norm" : "", c.bias ? " bias" : "", path == Linear::Path::kSmall ? "small" : "large",
                overlap ? " overlap" : "");
  report(name, relative_error(out, expected), is_float && !c.normed ? 2e-5 : 6e-3);
}

}  // namespace

void check_linear() {
  Linear linear;
  require(linear.init(), "Linear::init");
  using enum LinearOutput;
  const Case cases[] = {
      {1, 256, 1024, kBf16, true, false},      {1, 100, 64, kF32, false, true},
      {2, 1024, 2048, kAddF32, false, false},  {3, 512, 896, kGatedBf16, true, false},
      {5, 72, 40, kBf16, true, true},          {8, 1000, 1024, kF32, true, false},
      {9, 264, 328, kAddF32, false, true},     {16, 520, 4096, kBf16, true, false},
      {16, 640, 512, kGatedBf16, false, true}, {1, 5000, 1024, kF32, true, false},
      {4, 3000, 1032, kAddF32, false, false},  {17, 256, 1024, kBf16, true, false},
      {31, 520, 520, kGatedBf16, true, true},  {32, 2064, 640, kAddF32, false, false},
      {7, 24, 16384, kF32, false, false},      {1, 2560, 2560, kGatedBf16, true, false, GatedActivation::kGeluTanh},
      {32, 64, 5120, kBf16, false, false},
  };
  for (const Case& c : cases) {
    check_case(linear, c, Linear::Path::kSmall, false);
    check_case(linear, c, Linear::Path::kSmall, true);
  }
  const Case large[] = {{64, 512, 1024, kBf16, true, true},
                        {100, 264, 512, kAddF32, false, false},
                        {77, 1024, 256, kGatedBf16, true, false},
                        {33, 512, 512, kF32, false, true}};
  for (const Case& c : large) check_case(linear, c, Linear::Path::kLarge, false);
}

void check_experts() {
  for (const uint32_t tokens : {1U, 5U, 70U}) {
    Rng rng(tokens);
    const uint32_t experts = 24;
    const uint32_t chosen = 4;
    const uint32_t hidden = 128;
    const uint32_t inner = 72;
    const uint32_t pairs = tokens * chosen;
    const std::vector<float> logits = random_floats(rng, size_t{tokens} * experts, 2.0F);
    const std::vector<Bf16> x = random_bf16(rng, size_t{tokens} * hidden, 1.0F);
    const std::vector<float> residual = random_floats(rng, size_t{tokens} * hidden, 1.0F);
    const std::vector<Bf16> up = random_bf16(rng, size_t{experts} * 2 * inner * hidden, 0.1F);
    const std::vector<Bf16> down = random_bf16(rng, size_t{experts} * hidden * inner, 0.1F);
    Device<float> dlogits(logits), shares(pairs), y(size_t{pairs} * hidden), dresidual(residual);
    Device<int32_t> picked(pairs), offsets(experts + 1), pair_of(pairs), row_of(pairs);
    Device<Bf16> dx(x), dup(up), ddown(down), dinner(size_t{pairs} * inner);
    std::vector<const Bf16*> ups, downs;
    for (uint32_t e = 0; e < experts; ++e) {
      ups.push_back(dup.get() + size_t{e} * 2 * inner * hidden);
      downs.push_back(ddown.get() + size_t{e} * hidden * inner);
    }
    Device<const Bf16*> dups(ups), ddowns(downs);
    const Launch on{.stream = nullptr, .overlap = true};
    require(launch_route({.logits = dlogits.get(),
                          .chosen_experts = picked.get(),
                          .shares = shares.get(),
                          .tokens = tokens,
                          .experts = experts,
                          .chosen = chosen,
                          .normalize = true},
                         on),
            "route");
    require(launch_group_tokens({.chosen_experts = picked.get(),
                                 .expert_offsets = offsets.get(),
                                 .pair_of = pair_of.get(),
                                 .row_of = row_of.get(),
                                 .pairs = pairs,
                                 .experts = experts},
                                on),
            "group");
    require(launch_grouped_linear({.x = dx.get(),
                                   .weights = dups.get(),
                                   .expert_offsets = offsets.get(),
                                   .pair_of = pair_of.get(),
                                   .y_bf16 = dinner.get(),
                                   .pairs = pairs,
                                   .chosen = chosen,
                                   .experts = experts,
                                   .n = 2 * inner,
                                   .k = hidden,
                                   .gather = true},
                                  on),
            "gate-up");
    require(launch_grouped_linear({.x = dinner.get(),
                                   .weights = ddowns.get(),
                                   .expert_offsets = offsets.get(),
                                   .pair_of = pair_of.get(),
                                   .y_f32 = y.get(),
                                   .pairs = pairs,
                                   .chosen = chosen,
                                   .experts = experts,
                                   .n = hidden,
                                   .k = inner},
                                  on),
            "down");
    require(launch_combine_experts({.y = y.get(),
                                    .shares = shares.get(),
                                    .row_of = row_of.get(),
                                    .x = dresidual.get(),
                                    .tokens = tokens,
                                    .chosen = chosen,
                                    .hidden = hidden},
                                   on),
            "combine");
    const std::vector<float> wide_x = widen(x);
    std::vector<double> expected(residual.begin(), residual.end());
    for (uint32_t t = 0; t < tokens; ++t) {
      std::vector<uint32_t> order(experts);
      for (uint32_t e = 0; e < experts; ++e) order[e] = e;
      std::stable_sort(order.begin(), order.end(),
                       [&](uint32_t a, uint32_t b) { return logits[t * experts + a] > logits[t * experts + b]; });
      double sum = 0;
      for (uint32_t c = 0; c < chosen; ++c) sum += std::exp(double(logits[t * experts + order[c]]));
      for (uint32_t c = 0; c < chosen; ++c) {
        const uint32_t e = order[c];
        const double share = std::exp(double(logits[t * experts + e])) / sum;
        const std::vector<double> in(wide_x.begin() + t * hidden, wide_x.begin() + (t + 1) * hidden);
        const std::vector<Bf16> we(up.begin() + size_t{e} * 2 * inner * hidden,
                                   up.begin() + size_t{e + 1} * 2 * inner * hidden);
        const std::vector<double> both = multiply(in, we, 1, 2 * inner, hidden);
        std::vector<double> mid(inner);
        for (uint32_t i = 0; i < inner; ++i) {
          mid[i] = widen(narrow(static_cast<float>(activate(GatedActivation::kSilu, both[i]) * both[inner + i])));
        }
        const std::vector<Bf16> wd(down.begin() + size_t{e} * hidden * inner,
                                   down.begin() + size_t{e + 1} * hidden * inner);
        const std::vector<double> out = multiply(mid, wd, 1, hidden, inner);
        for (uint32_t i = 0; i < hidden; ++i) expected[t * hidden + i] += share * out[i];
      }
    }
    report("experts, " + std::to_string(tokens) + " tokens", relative_error(dresidual.host(), expected), 2e-3);
  }
}

void check_elementwise() {
  Rng rng(5);
  const Launch on{.stream = nullptr, .overlap = true};
  const uint32_t rows = 7;
  const uint32_t size = 1000;
  const std::vector<float> x = random_floats(rng, rows * size, 2.0F);
  const std::vector<float> y = random_floats(rng, rows * size, 2.0F);
  const std::vector<float> w = random_floats(rng, size, 0.3F, 1.0F);
  Device<float> dx(x), dy(y), dw(w);
  Device<Bf16> normed(rows * size);
  require(launch_rms_norm({.x = dx.get(), .weight = dw.get(), .y = normed.get(), .rows = rows, .size = size}, on),
          "norm");
  report("rms_norm", relative_error(widen(normed.host()), norm_reference(x, w, rows, 1e-6F)), 4e-3);
  std::vector<double> expected = norm_reference(y, w, rows, 1e-6F);
  for (size_t i = 0; i < expected.size(); ++i) expected[i] += x[i];
  require(launch_post_norm_add({.y = dy.get(), .weight = dw.get(), .x = dx.get(), .rows = rows, .size = size}, on),
          "norm");
  report("post_norm_add", relative_error(dx.host(), expected), 1e-6);

  const uint32_t vocab = 50;
  const std::vector<Bf16> table = random_bf16(rng, vocab * size, 1.0F);
  const std::vector<uint32_t> tokens{3, 0xFFFF'FFFF, 49, 0, 0xFFFF'FFFF, 7, 1};
  const std::vector<uint32_t> from{0, 2, 0, 0, 1, 0, 0};
  const std::vector<uint32_t> previous{11, 12, 13};
  const uint32_t real[] = {3, 13, 49, 0, 12, 7, 1};
  Device<Bf16> dtable(table);
  Device<uint32_t> dtokens(tokens), dfrom(from), dprevious(previous);
  Device<float> embedded(rows * size);
  require(launch_embed({.embedding = dtable.get(),
                        .tokens = dtokens.get(),
                        .from_sample = dfrom.get(),
                        .previous_tokens = dprevious.get(),
                        .x = embedded.get(),
                        .num_tokens = rows,
                        .hidden = size,
                        .vocab = vocab,
                        .scale = 2.5F},
                       on),
          "embed");
  expected.clear();
  for (const uint32_t t : real) {
    for (uint32_t i = 0; i < size; ++i) expected.push_back(2.5 * widen(table[t * size + i]));
  }
  report("embed", relative_error(embedded.host(), expected), 1e-6);

  for (const GatedActivation a : {GatedActivation::kSilu, GatedActivation::kGeluTanh}) {
    const std::vector<Bf16> both = random_bf16(rng, rows * 2 * size, 2.0F);
    Device<Bf16> dboth(both), out(rows * size);
    require(launch_gated_activation(
                {.gate_up = dboth.get(), .y = out.get(), .rows = rows, .size = size, .activation = a}, on),
            "act");
    expected.clear();
    for (uint32_t r = 0; r < rows; ++r) {
      for (uint32_t i = 0; i < size; ++i) {
        expected.push_back(activate(a, widen(both[r * 2 * size + i])) * widen(both[(r * 2 + 1) * size + i]));
      }
    }
    report("gated activation", relative_error(widen(out.host()), expected), 4e-3);
  }

  std::vector<uint8_t> pool(5 * 4096);
  for (uint8_t& b : pool) b = static_cast<uint8_t>(rng());
  Device<uint8_t> dpool(pool);
  const std::vector<int32_t> sources{1, 4};
  const std::vector<int32_t> targets{3, 0};
  Device<int32_t> dsources(sources), dtargets(targets);
  require(launch_page_copy({.pool = reinterpret_cast<std::byte*>(dpool.get()),
                            .from = dsources.get(),
                            .to = dtargets.get(),
                            .count = 2,
                            .page_bytes = 4096},
                           on),
          "copy");
  for (int i = 0; i < 2; ++i) std::copy_n(pool.begin() + sources[i] * 4096, 4096, pool.begin() + targets[i] * 4096);
  report("page copy", dpool.host() == pool ? 0 : 1, 0);
}

}  // namespace dyn::native::cuda

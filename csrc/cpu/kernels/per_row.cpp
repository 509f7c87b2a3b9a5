// See per_row/table.h. Compiled once per instruction set.
#include "csrc/cpu/kernels/activations.h"
#include "csrc/cpu/kernels/stages.h"
#include "csrc/cpu/per_row/table.h"

namespace ssc::SSC_ISA {
namespace {

constexpr int64_t kLine = 64;

// The part of a row beyond its whole vectors: a vector that ends where the row does, whose first
// lanes, which belong to the vector before, are zeroed; or all of a row that is shorter than one.
template <class T, class S>
SSC_INLINE Vec<T> load_tail(const S* row, int64_t dim) {
  constexpr int64_t L = kLanes<T>;
  if (dim < L) return load_head<T>(row, dim);
  Vec<T> v = load_as<T>(row + dim - L);
  const int64_t overlap = L - dim % L;
  for (int64_t j = 0; j < L; ++j) v[j] = j < overlap ? T(0) : v[j];
  return v;
}

// Where that vector starts.
template <class T>
SSC_INLINE int64_t tail_start(int64_t dim) {
  return dim < kLanes<T> ? 0 : dim - kLanes<T>;
}

// How far ahead rows are asked for: two vectors of small ones, else one, which is some KiB.
template <class T, class S>
SSC_INLINE int64_t prefetch_distance(int64_t dim) {
  constexpr int64_t L = kLanes<T>;
  constexpr int64_t kSmallRow = 1024;
  const int64_t bytes = dim * static_cast<int64_t>(sizeof(S));
  return bytes <= kSmallRow ? (kRowsAhead + L - 1) / L * L : L;
}

template <class S>
SSC_INLINE void prefetch_row(const S* row, int64_t dim) {
  const char* begin = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(S)); byte += kLine) {
    __builtin_prefetch(begin + byte);
  }
}

template <class S>
SSC_INLINE void prefetch_rows(const S* weights, const MatrixView& weight, const int64_t* ids,
                              int64_t begin, int64_t end, int64_t dim) {
  for (int64_t s = begin; s < end; ++s) prefetch_row(weights + ids[s] * weight.stride, dim);
}

// The rows of samples first .. first + kLanes − 1; the last one stands for those that are not
// there.
template <class T, class S>
SSC_INLINE void row_pointers(const S* weights, const MatrixView& weight, const RowSamples<T>& r,
                             int64_t first, const S** rows) {
  for (int64_t j = 0; j < kLanes<T>; ++j) {
    const int64_t s = first + j < r.count ? first + j : r.count - 1;
    rows[j] = weights + r.ids[s] * weight.stride;
  }
}

// h · W_s for kLanes rows.
template <class T, class S>
SSC_INLINE Vec<T> dots(const T* h, const S* const* rows, int64_t dim) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sums[L] = {};
  int64_t d = 0;
  for (; d + L <= dim; d += L) {
    const Vec<T> x = load(h + d);
#pragma GCC unroll 16
    for (int64_t j = 0; j < L; ++j) sums[j] += x * load_as<T>(rows[j] + d);
  }
  if (d < dim) {
    const Vec<T> x = dim < L ? load_head<T>(h, dim) : load(h + tail_start<T>(dim));
#pragma GCC unroll 16
    for (int64_t j = 0; j < L; ++j) sums[j] += x * load_tail<T>(rows[j], dim);
  }
  transpose<T>(sums);
#pragma GCC unroll 4
  for (int64_t half = L / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

template <class T>
SSC_INLINE Vec<T> load_some(const T* p, int64_t first, int64_t count) {
  const int64_t left = count - first;
  return left >= kLanes<T> ? load(p + first) : load_head<T>(p + first, left);
}

template <class T>
SSC_INLINE void store_some(T* p, int64_t first, int64_t count, Vec<T> v) {
  if (count - first >= kLanes<T>) return store(p + first, v);
  for (int64_t j = first; j < count; ++j) p[j] = v[j - first];
}

// Lanes of samples that are there keep x, the others get `rest`.
template <class T>
SSC_INLINE Vec<T> keep_some(Vec<T> x, int64_t first, int64_t count, T rest) {
  for (int64_t j = count - first; j < kLanes<T>; ++j) x[j] = rest;
  return x;
}

template <class T>
struct Logits {
  Vec<T> z, slope;  // slope: dz / d((h · W + b) / τ)
};

template <class T>
SSC_INLINE Logits<T> logits_of(const RowScore<T>& score, const RowSamples<T>& r, int64_t first,
                               Vec<T> products) {
  Vec<T> x = products;
  if (r.bias != nullptr) x += load_some(r.bias, first, r.count);
  x *= score.inv_temperature;
  Vec<T> slope = splat(T(1));
  if (score.softcap > 0) {
    const Vec<T> t = tanh_of<T>(x * (T(1) / score.softcap));
    x = t * score.softcap;
    slope -= t * t;
  }
  if (r.log_count != nullptr) x -= load_some(r.log_count, first, r.count);
  return {x, slope};
}

// grad += Σ_j coefficient_j W_j.
template <class T, class S>
SSC_INLINE void add_weighted(Vec<T> coefficient, const S* const* rows, int64_t dim, T* grad) {
  constexpr int64_t L = kLanes<T>;
  int64_t d = 0;
  for (; d + L <= dim; d += L) {
    Vec<T> even = load(grad + d), odd{};
#pragma GCC unroll 8
    for (int64_t j = 0; j < L; j += 2) {
      even += coefficient[j] * load_as<T>(rows[j] + d);
      odd += coefficient[j + 1] * load_as<T>(rows[j + 1] + d);
    }
    store<T>(grad + d, even + odd);
  }
  if (d == dim) return;
  T* tail = grad + tail_start<T>(dim);
  Vec<T> sum = load(tail);
  for (int64_t j = 0; j < L; ++j) sum += coefficient[j] * load_tail<T>(rows[j], dim);
  store<T>(tail, sum);
}

template <class T>
void load_row(MatrixView input, int64_t row, int64_t dim, T* h) {
  with_storage<T>(input.data, input.dtype, [&](const auto* data) {
    const auto* x = data + row * input.stride;
    int64_t d = 0;
    for (; d + kLanes<T> <= dim; d += kLanes<T>) store<T>(h + d, load_as<T>(x + d));
    for (; d < dim; ++d) h[d] = get<T>(x + d);
  });
}

template <class T>
void score_row(const RowScore<T>& score, const RowSamples<T>& r, T* z) {
  constexpr int64_t L = kLanes<T>;
  with_storage<T>(score.weight.data, score.weight.dtype, [&](const auto* weights) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(weights)>>;
    const int64_t distance = prefetch_distance<T, S>(score.dim);
    const int64_t known = r.count + r.ahead;
    const S* rows[L];
    for (int64_t s = 0; s < r.count; s += L) {
      prefetch_rows(weights, score.weight, r.ids, smaller(s + distance, known),
                    smaller(s + distance + L, known), score.dim);
      row_pointers(weights, score.weight, r, s, rows);
      const Vec<T> products = dots<T>(r.h, rows, score.dim);
      store_some(z, s, r.count, logits_of(score, r, s, products).z);
    }
  });
}

template <class T>
T maximum_of(const T* z, int64_t count) {
  Vec<T> most = splat(-static_cast<T>(__builtin_inf()));
  int64_t s = 0;
  for (; s + kLanes<T> <= count; s += kLanes<T>) most = maximum<T>(load(z + s), most);
  T result = max_lanes<T>(most);
  for (; s < count; ++s) result = z[s] > result ? z[s] : result;
  return result;
}

template <class T, class F>
SSC_INLINE T sum_of(const T* z, int64_t count, F&& f) {
  Vec<T> sum{};
  int64_t s = 0;
  for (; s + kLanes<T> <= count; s += kLanes<T>) sum += f(load(z + s));
  if (s < count) sum += keep_some<T>(f(load_some(z, s, count)), s, count, T(0));
  return sum_lanes<T>(sum);
}

template <class T>
T exp_sum(const T* z, int64_t count, T reference) {
  return sum_of(z, count, [&](Vec<T> x) { return exp_in_range<T>(x - reference); });
}

template <class T>
T softplus_sum(const T* z, int64_t count) {
  return sum_of(z, count, [](Vec<T> x) { return softplus_of<T>(x).value; });
}

template <class T>
RowSum<T> row_grads(const RowScore<T>& score, const RowSamples<T>& r, T reference, bool sigmoid,
                    T* coefficient, T* grad) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sum{}, most = splat(-static_cast<T>(__builtin_inf()));
  with_storage<T>(score.weight.data, score.weight.dtype, [&](const auto* weights) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(weights)>>;
    const int64_t distance = prefetch_distance<T, S>(score.dim);
    const int64_t known = r.count + r.ahead;
    const S* rows[L];
    for (int64_t d = 0; d < (score.dim < L ? L : score.dim); ++d) grad[d] = 0;
    for (int64_t s = 0; s < r.count; s += L) {
      prefetch_rows(weights, score.weight, r.ids, smaller(s + distance, known),
                    smaller(s + distance + L, known), score.dim);
      row_pointers(weights, score.weight, r, s, rows);
      const Logits<T> x = logits_of(score, r, s, dots<T>(r.h, rows, score.dim));
      const Vec<T> shifted = x.z - reference;
      Vec<T> e = sigmoid ? softplus_of<T>(x.z).slope : exp_in_range<T>(shifted);
      if (s + L > r.count) e = keep_some<T>(e, s, r.count, T(0));
      sum += e;
      most = maximum<T>(shifted, most);
      const Vec<T> c = e * x.slope;
      store_some(coefficient, s, r.count, c);
      add_weighted(c, rows, score.dim, grad);
    }
  });
  return {sum_lanes<T>(sum), max_lanes<T>(most)};
}

template <class T>
void write_row(MatrixView out, int64_t row, int64_t dim, T factor, const T* grad) {
  with_storage<T>(out.data, out.dtype, [&](const auto* data) {
    using S = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    S* to = const_cast<S*>(data) + row * out.stride;
    int64_t d = 0;
    for (; d + kLanes<T> <= dim; d += kLanes<T>) store_as<T>(to + d, load(grad + d) * factor);
    for (; d < dim; ++d) put(to + d, grad[d] * factor);
  });
}

// kVectors vectors of one run's sum from column d on.
template <class T, int kVectors>
SSC_INLINE void add_columns(const GradRun& run, const GradEntry<T>* entries, const T* rows,
                            int64_t dim, int64_t d, T* out) {
  Vec<T> sums[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) sums[v] = load(out + d + v * kLanes<T>);
  for (int64_t e = run.begin; e < run.end; ++e) {
    const T* row = rows + entries[e].row * dim + d;
    const Vec<T> c = splat(entries[e].coefficient);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[v] += c * load(row + v * kLanes<T>);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) store<T>(out + d + v * kLanes<T>, sums[v]);
}

template <class T>
void add_runs(const GradRun* runs, int64_t count, const GradEntry<T>* entries, const T* rows,
              int64_t dim, T* out, int64_t stride, T* bias) {
  constexpr int64_t L = kLanes<T>;
  constexpr int kVectors = 8;
  constexpr int64_t kRunsAhead = 8;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kRunsAhead < count) {
      const char* next = reinterpret_cast<const char*>(out + runs[i + kRunsAhead].slot * stride);
      for (int64_t byte = 0; byte < dim * static_cast<int64_t>(sizeof(T)); byte += kLine) {
        __builtin_prefetch(next + byte, 1);
      }
    }
    T* to = out + runs[i].slot * stride;
    int64_t d = 0;
    for (; d + kVectors * L <= dim; d += kVectors * L) {
      add_columns<T, kVectors>(runs[i], entries, rows, dim, d, to);
    }
    for (; d + L <= dim; d += L) add_columns<T, 1>(runs[i], entries, rows, dim, d, to);
    T total = 0;
    for (int64_t e = runs[i].begin; e < runs[i].end; ++e) {
      const T* row = rows + entries[e].row * dim;
      for (int64_t rest = d; rest < dim; ++rest) to[rest] += entries[e].coefficient * row[rest];
      total += entries[e].coefficient;
    }
    if (bias != nullptr) bias[runs[i].slot] += total;
  }
}

}  // namespace

template <class T>
const PerRowKernels<T>& per_row_table() {
  static constexpr PerRowKernels<T> table = {
      &load_row<T>,  &score_row<T>, &maximum_of<T>, &exp_sum<T>, &softplus_sum<T>, &row_grads<T>,
      &write_row<T>, &add_runs<T>,  &convert<T>,    kLanes<T>,   kExpCeiling<T>,
  };
  return table;
}

template const PerRowKernels<float>& per_row_table();
template const PerRowKernels<double>& per_row_table();

}  // namespace ssc::SSC_ISA

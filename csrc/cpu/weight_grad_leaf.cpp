// dWs = E^T (scaled H) for one panel of samples.
//
// The roles are swapped: the vectors run over the samples, where E's panel is contiguous, and the
// scaled H is broadcast, so a panel of E is read from L2 and nothing is transposed on the way in.
// The result [D][P] is transposed on the way out, once, in registers.
#include "csrc/cpu/loss_stages.h"
#include "csrc/cpu/prefetch.h"
#include "csrc/cpu/register_tile.h"

namespace ssc::SSC_ISA {
namespace {

// Rows of E's panel taken at a time, so that they stay in L1 for all columns of H.
constexpr int64_t kPartRows = 256;

template <class T>
struct Product {
  // out[j][0:P] (+)= Σ_i a[i][j] · e[i][0:P] for M columns j of the scaled H, rows i of one part.
  template <int M>
  struct Body {
    static void run(const T* a, const T* e, Range rows, T* out, const Wanted* wanted) {
      Vec<T> acc[M][2];
      if (rows.begin == 0) {
        clear_tile<T>(acc);
      } else {
        load_tile<T, M>(acc, out, kPanel<T>);
      }
      Wanted next = *wanted;
      multiply_add<T, M>(acc, a + rows.begin * M, e + rows.begin * kPanel<T>, rows.end - rows.begin,
                         next);
      store_tile<T, M>(acc, out, kPanel<T>);
    }
  };
};

// What is wanted after a panel's product: the next panel of E, and the rows of dWs to be written.
template <class T>
class NextPanel {
 public:
  NextPanel(const RowChunk<T>& chunk, const T* e, int64_t dim, const int64_t* slot, int64_t count,
            T* out, int64_t out_stride)
      : e_(e + chunk.exps_stride),
        e_end_(e + chunk.exps_stride + chunk.rows * kPanel<T>),
        dim_(dim),
        slot_(slot),
        count_(count),
        out_(out),
        out_stride_(out_stride) {}

  Wanted take(int64_t steps) {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
    const int64_t lines = steps / kPrefetchInterval;
    Wanted wanted = nothing_wanted(slot_);
    if (e_ < e_end_) {
      wanted.read[0] = wanted.read[1] = reinterpret_cast<const char*>(e_);
      wanted.read_stride = 64;
      e_ += lines * kLine;
    }
    if (row_ < count_) {
      wanted.write = reinterpret_cast<const char*>(out_ + slot_[row_] * out_stride_ + offset_);
      wanted.write_stride = 64;
      offset_ += lines * kLine;
      while (offset_ >= dim_ && row_ < count_) {  // a call may run on into the rows that follow
        offset_ -= dim_;
        ++row_;
      }
    }
    return wanted;
  }

 private:
  const T* e_;
  const T* e_end_;
  const int64_t dim_;
  const int64_t* slot_;
  const int64_t count_;
  T* const out_;
  const int64_t out_stride_;
  int64_t row_ = 0, offset_ = 0;
};

// from[D][P] to rows out + slot[s] · stride, s < count.
template <class T, bool kAccumulate>
SSC_INLINE void scatter_transposed(const T* from, int64_t dim, const int64_t* slot, int64_t count,
                                   T* out, int64_t stride) {
  constexpr int L = kLanes<T>, P = kPanel<T>;
  for (int64_t s = 0; s < count; s += L) {
    const int64_t lanes = count - s < L ? count - s : L;
    int64_t d = 0;
    for (; d + L <= dim; d += L) {
      Vec<T> v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) v[i] = load(from + (d + i) * P + s);
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        if (i >= lanes) break;
        T* to = out + slot[s + i] * stride + d;
        store<T>(to, kAccumulate ? load(to) + v[i] : v[i]);
      }
    }
    for (; d < dim; ++d) {
      for (int64_t i = 0; i < lanes; ++i) {
        T* to = out + slot[s + i] * stride + d;
        *to = (kAccumulate ? *to : T(0)) + from[d * P + s + i];
      }
    }
  }
}

}  // namespace

template <class T>
void weight_grad(const RowChunk<T>& chunk, int64_t dim, const int64_t* slot, int64_t count,
                 int64_t index, bool accumulate, T* out, int64_t out_stride, T* scratch) {
  constexpr int P = kPanel<T>;
  const T* e = chunk.exps + index * chunk.exps_stride;
  const Partition parts = partition(chunk.rows, (chunk.rows + kPartRows - 1) / kPartRows);
  NextPanel<T> next(chunk, e, dim, slot, count, out, out_stride);
  for (int64_t part = 0; part < parts.count; ++part) {
    const Range rows = piece(parts, part);
    for (int64_t g = 0; g < chunk.columns.count; ++g) {
      const Range r = piece(chunk.columns, g);
      const T* a = chunk.grad_scaled + r.begin * chunk.rows;
      const Wanted wanted = next.take(rows.end - rows.begin);
      with_rows<Product<T>::template Body>(r.end - r.begin, a, e, rows, scratch + r.begin * P,
                                           &wanted);
    }
  }
  if (accumulate) {
    scatter_transposed<T, true>(scratch, dim, slot, count, out, out_stride);
  } else {
    scatter_transposed<T, false>(scratch, dim, slot, count, out, out_stride);
  }
}

template void weight_grad(const RowChunk<float>&, int64_t, const int64_t*, int64_t, int64_t, bool,
                          float*, int64_t, float*);
template void weight_grad(const RowChunk<double>&, int64_t, const int64_t*, int64_t, int64_t, bool,
                          double*, int64_t, double*);

}  // namespace ssc::SSC_ISA

#include "csrc/cpu/update/update.h"

#include <atomic>

#include "csrc/cpu/update/table.h"

namespace ssc {

#if defined(__x86_64__)
namespace avx2 {
extern const UpdateKernels kUpdateKernels;
}
namespace avx512 {
extern const UpdateKernels kUpdateKernels;
}
#endif
namespace scalar {
extern const UpdateKernels kUpdateKernels;
}

const UpdateKernels& update_kernels(Isa isa) {
#if defined(__x86_64__)
  if (vector_isa(isa) == Isa::avx512) return avx512::kUpdateKernels;
  if (isa == Isa::avx2) return avx2::kUpdateKernels;
#else
  static_cast<void>(isa);
#endif
  return scalar::kUpdateKernels;
}

namespace {

// Elements that are worth a thread, and as many as finding a row takes the time of.
constexpr int64_t kGrainElements = 1 << 15;
constexpr int64_t kElementsOfRow = 64;

int64_t row_grain(int64_t dim) { return kGrainElements / (dim + kElementsOfRow) + 1; }

void run_rows(const RowUpdate& update, Isa isa, const ParallelFor& parallel_for) {
  if (update.dim == 0) return;
  const UpdateKernels& kernels = update_kernels(isa);
  const auto philox = sample_kernels(isa).philox;
  parallel_for(update.count, row_grain(update.dim),
               [&](int64_t begin, int64_t end) { kernels.rows(update, philox, begin, end); });
}

}  // namespace

void update_rows(RowUpdate update, float* step, Isa isa, const ParallelFor& parallel_for) {
  const UpdateKernels& kernels = update_kernels(isa);
  update.step = kernels.scalars(update.options, static_cast<int64_t>(*step) + 1);
  run_rows(update, isa, parallel_for);
  if (update.history.data != nullptr) kernels.close(update);
  *step = static_cast<float>(update.step.step);
}

void settle_rows(RowUpdate update, const float* step, Isa isa, const ParallelFor& parallel_for) {
  update.step.step = static_cast<int64_t>(*step);
  run_rows(update, isa, parallel_for);
}

int64_t first_nonfinite_row(const void* values, DType dtype, int64_t count, int64_t dim, Isa isa,
                            const ParallelFor& parallel_for) {
  const UpdateKernels& kernels = update_kernels(isa);
  const auto* bytes = static_cast<const char*>(values);
  const int64_t row_bytes = dim * element_size(dtype);
  std::atomic<int64_t> first{count};
  parallel_for(count, row_grain(dim), [&](int64_t begin, int64_t end) {
    if (kernels.finite(bytes + begin * row_bytes, dtype, (end - begin) * dim)) return;
    while (kernels.finite(bytes + begin * row_bytes, dtype, dim)) ++begin;
    int64_t seen = first.load();
    while (begin < seen && !first.compare_exchange_weak(seen, begin)) {
    }
  });
  return first.load() == count ? -1 : first.load();
}

}  // namespace ssc

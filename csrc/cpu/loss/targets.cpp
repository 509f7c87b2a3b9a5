#include "csrc/cpu/loss/targets.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/cpu/loss/merge.h"
#include "csrc/cpu/loss/table.h"

namespace ssc {
namespace {

constexpr int64_t kGrain = 64;  // rows that are worth a thread

template <class T>
const LossKernels<T>& kernels_for(const TargetProblem& p, Isa isa) {
  return loss_kernels<T>(isa, p.input.dtype, p.weight.dtype);
}

// The targets that are there, by (class, place): entries {class, place}.
struct Sorted {
  const Entry* entries;
  int64_t count;
};

Sorted sort_targets(const TargetProblem& p, Workspace& workspace) {
  const int64_t most = p.batch * p.targets;
  auto* entries = workspace.take<Entry>(most);
  int64_t count = 0;
  for (int64_t j = 0; j < most; ++j) {
    if (p.target[j] >= 0) entries[count++] = {p.target[j], j};
  }
  return {sort_by_id(entries, workspace.take<Entry>(count), count, p.classes), count};
}

}  // namespace

template <class T>
void target_products(const TargetProblem& p, T* out, Isa isa, const ParallelFor& parallel_for) {
  const LossKernels<T>& kernels = kernels_for<T>(p, isa);
  parallel_for(p.batch, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * p.targets; j < end * p.targets; ++j) {
      const T product = p.target[j] < 0
                            ? T(0)
                            : kernels.dot(p.input, j / p.targets, p.weight, p.target[j], p.dim);
      out[j] = std::isinf(product) ? std::numeric_limits<T>::quiet_NaN() : product;
    }
  });
}

template <class T>
bool add_target_grads(const TargetProblem& p, const TargetGradients<T>& g, Workspace& workspace,
                      Isa isa, const ParallelFor& parallel_for) {
  const LossKernels<T>& kernels = kernels_for<T>(p, isa);
  const Sorted sorted = sort_targets(p, workspace);
  auto* row = workspace.take<int64_t>(sorted.count);  // where the gradient of each entry's class is
  for (int64_t n = 0, at = 0; n < sorted.count; ++n) {
    at = std::lower_bound(g.classes + at, g.classes + g.rows, sorted.entries[n].id) - g.classes;
    if (at == g.rows || g.classes[at] != sorted.entries[n].id) return false;
    row[n] = at;
  }
  parallel_for(p.batch, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * p.targets; j < end * p.targets; ++j) {
      if (p.target[j] < 0) continue;
      kernels.add_row(p.weight, p.target[j], p.dim, g.coefficient[j],
                      g.input + j / p.targets * p.dim);
    }
  });
  // A class's entries are one thread's, that of the first.
  parallel_for(sorted.count, kGrain, [&](int64_t begin, int64_t end) {
    const auto starts_class = [&](int64_t n) { return n == 0 || row[n] != row[n - 1]; };
    while (begin < end && !starts_class(begin)) ++begin;
    if (begin == end) return;
    while (end < sorted.count && !starts_class(end)) ++end;
    for (int64_t n = begin; n < end; ++n) {
      const int64_t j = sorted.entries[n].source;
      kernels.add_row(p.input, j / p.targets, p.dim, g.coefficient[j], g.weight + row[n] * p.dim);
      if (g.bias_coefficient != nullptr) g.bias[row[n]] += g.bias_coefficient[j];
    }
  });
  return true;
}

template void target_products(const TargetProblem&, float*, Isa, const ParallelFor&);
template void target_products(const TargetProblem&, double*, Isa, const ParallelFor&);
template bool add_target_grads(const TargetProblem&, const TargetGradients<float>&, Workspace&, Isa,
                               const ParallelFor&);
template bool add_target_grads(const TargetProblem&, const TargetGradients<double>&, Workspace&,
                               Isa, const ParallelFor&);

}  // namespace ssc

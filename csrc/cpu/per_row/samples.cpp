#include "csrc/cpu/per_row/samples.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace ssc {
namespace {

// Element i of a vector as T.
template <class T>
T element(const Vector& v, int64_t i) {
  switch (v.dtype) {
    case DType::f64:
      return static_cast<T>(static_cast<const double*>(v.data)[i]);
    case DType::bf16:
      return static_cast<T>(to_float(static_cast<const BFloat16*>(v.data)[i]));
    case DType::f16:
      return static_cast<T>(to_float(static_cast<const Float16*>(v.data)[i]));
    default:
      return static_cast<T>(static_cast<const float*>(v.data)[i]);
  }
}

}  // namespace

template <class T>
RowSource<T>::RowSource(const PerRowProblem<T>& problem, const int64_t* rows, int64_t count)
    : problem_(problem), rows_(rows), count_(count) {
  const RowIds& samples = problem.samples;
  const int64_t n = samples.num_samples;
  const bool counts =
      samples.draws != nullptr ? samples.corrected : samples.log_count.data != nullptr;
  for (Row& row : buffers_) {
    row.ids = workspace_.take<int64_t>(n + kRowsAhead);
    row.bias = problem.bias.data == nullptr ? nullptr : workspace_.take<T>(n);
    row.log_count = counts ? workspace_.take<T>(n) : nullptr;
  }
  kept_hits_ = workspace_.take<int64_t>(n);
  kept_hit_counts_ = workspace_.take<T>(n);
  if (samples.draws != nullptr) {
    sampler_.emplace(*samples.draws);
    drawn_log_count_ = workspace_.take<float>(n);
  }
  if (count > 0) prepare(0, buffers_[0]);
}

template <class T>
bool RowSource<T>::next(Row& row, int64_t& ahead) {
  if (index_ == count_) return false;
  row = buffers_[index_ % 2];
  Row& following = buffers_[(index_ + 1) % 2];
  ++index_;
  ahead = 0;
  if (index_ < count_) {
    prepare(index_, following);
    ahead = std::min(kRowsAhead, following.count);
    std::copy_n(following.ids, ahead, row.ids + row.count);
  }
  return true;
}

template <class T>
bool RowSource<T>::is_hit(int64_t row, int64_t id) const {
  const int64_t* hits = problem_.hits + row * problem_.num_hits;
  for (int64_t k = 0; k < problem_.num_hits; ++k) {
    if (hits[k] == id) return true;
  }
  return false;
}

template <class T>
bool RowSource<T>::has_hit(int64_t row, const int64_t* ids) const {
  bool found = false;
  for (int64_t k = 0; k < problem_.num_hits; ++k) {
    const int64_t hit = problem_.hits[row * problem_.num_hits + k];
    for (int64_t s = 0; s < problem_.samples.num_samples; ++s) found |= ids[s] == hit;
  }
  return found;
}

template <class T>
void RowSource<T>::prepare(int64_t index, Row& out) {
  const RowIds& samples = problem_.samples;
  const int64_t n = samples.num_samples;
  const int64_t row = rows_[index];
  out.row = row;
  const int64_t* ids = out.ids;
  if (samples.draws != nullptr) {
    sampler_->draw(row, out.ids);
    if (samples.corrected) {
      float* counts = drawn_log_count_;
      if constexpr (sizeof(T) == sizeof(float)) counts = out.log_count;
      sampler_->log_counts(out.ids, n, counts);
      if constexpr (sizeof(T) != sizeof(float)) std::copy_n(counts, n, out.log_count);
    }
    if (!has_hit(row, out.ids)) {  // draws are in range and none is masked: all stay
      out.num_peak = out.count = n;
      gather_bias(out);
      return;
    }
  } else {
    ids = samples.ids + row * n;
  }
  // Drawn samples have their counts in place: they move forward at the most.
  const auto log_count = [&](int64_t s) {
    if (out.log_count == nullptr) return T(0);
    return samples.draws != nullptr ? out.log_count[s]
                                    : correction_of(element<T>(samples.log_count, row * n + s));
  };
  int64_t kept = 0;
  int64_t hits = 0;
  for (int64_t s = 0; s < n; ++s) {
    const int64_t id = ids[s];
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(problem_.classes)) {
      throw std::runtime_error(
          "ids[" + std::to_string(row) + ", " + std::to_string(s) +
          "] is out of range: expected [0, C=" + std::to_string(problem_.classes) + ")");
    }
    const T count = log_count(s);
    if (std::isinf(count) && count > 0) continue;
    if (is_hit(row, id)) {
      if (problem_.remove_hits) continue;
      kept_hits_[hits] = id;
      kept_hit_counts_[hits++] = count;
      continue;
    }
    out.ids[kept] = id;
    if (out.log_count != nullptr) out.log_count[kept] = count;
    ++kept;
  }
  out.num_peak = kept;
  for (int64_t k = 0; k < hits; ++k, ++kept) {
    out.ids[kept] = kept_hits_[k];
    if (out.log_count != nullptr) out.log_count[kept] = kept_hit_counts_[k];
  }
  out.count = kept;
  gather_bias(out);
}

template <class T>
void RowSource<T>::gather_bias(Row& row) const {
  if (row.bias == nullptr) return;
  for (int64_t s = 0; s < row.count; ++s) row.bias[s] = element<T>(problem_.bias, row.ids[s]);
}

template class RowSource<float>;
template class RowSource<double>;

}  // namespace ssc

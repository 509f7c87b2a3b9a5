// Exponential races on the GPU, in memory of PyTorch's allocator.
#pragma once

#include <algorithm>
#include <optional>

#include "csrc/cuda/sample/sample.h"
#include "csrc/ops/cuda/device.h"

namespace ssc::ops::cuda {

// Room for the races of up to rows() rows at a time.
class Races {
 public:
  // For at most `most_rows`; within kBytes, unless one row takes more.
  Races(const OnDevice& device, int64_t num_classes, int64_t most_rows)
      : num_classes_(num_classes),
        rows_(rows_within(num_classes, most_rows)),
        times_(device.empty({2, rows_, ssc::cuda::race_stride(num_classes)}, ScalarType::Double)),
        classes_(device.empty({2, rows_, ssc::cuda::race_stride(num_classes)}, ScalarType::Long)) {
    // A last chunk of one row is sorted by another function.
    for (const int64_t rows : {int64_t{1}, rows_}) {
      size_t bytes = 0;
      sort(rows, nullptr, bytes, device.stream());
      temporary_bytes_ = std::max(temporary_bytes_, bytes);
    }
    temporary_ = device.empty({static_cast<int64_t>(temporary_bytes_) + 1}, ScalarType::Byte);
  }

  int64_t rows() const { return rows_; }

  // The races of `rows` rows from first_row on. exclude [rows][num_excluded] begins with the first.
  template <class Proposal>
  void run(const Proposal& proposal, const int64_t* key, int64_t first_row, int64_t rows,
           const int64_t* exclude, int64_t num_excluded, cudaStream_t stream) {
    check_launch(
        ssc::cuda::arrival_times(proposal, key, first_row, rows, times(), classes(), stream),
        "arrival_times");
    check_launch(ssc::cuda::bar_classes(exclude, rows, num_excluded, num_classes_, times(), stream),
                 "bar_classes");
    sort(rows, temporary_->data_ptr(), temporary_bytes_, stream);
  }

  // The last race's result, by rising time: [rows][race_stride(C)].
  const double* sorted_times() const { return times() + length(); }
  const int64_t* arrivals() const { return classes() + length(); }

 private:
  static constexpr int64_t kBytes = int64_t{64} << 20;
  // From so many on, one row should keep a GPU busy, where a segment has one block: not measured.
  static constexpr int64_t kManyClasses = int64_t{1} << 17;

  static int64_t rows_within(int64_t num_classes, int64_t most_rows) {
    if (num_classes >= kManyClasses) return 1;
    // Times and classes as they come, sorted, and once more for the sort itself.
    constexpr int64_t kClassBytes = 3 * 16;
    const int64_t most = kBytes / (ssc::cuda::race_stride(num_classes) * kClassBytes);
    return std::clamp<int64_t>(most, 1, std::max<int64_t>(most_rows, 1));
  }

  int64_t length() const { return rows_ * ssc::cuda::race_stride(num_classes_); }
  double* times() const { return static_cast<double*>(times_.data_ptr()); }
  int64_t* classes() const { return static_cast<int64_t*>(classes_.data_ptr()); }

  void sort(int64_t rows, void* temporary, size_t& bytes, cudaStream_t stream) const {
    check_launch(ssc::cuda::sort_arrivals(temporary, bytes, times(), classes(), rows, num_classes_,
                                          times() + length(), classes() + length(), stream),
                 "sort_arrivals");
  }

  int64_t num_classes_, rows_;
  Tensor times_, classes_;  // [2, rows, race_stride(C)]: as they come, and sorted
  std::optional<Tensor> temporary_;
  size_t temporary_bytes_ = 0;
};

}  // namespace ssc::ops::cuda

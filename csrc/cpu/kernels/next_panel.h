// The lines that dWs asks for while a panel's product is in work.
#pragma once

#include "csrc/cpu/kernels/prefetch.h"
#include "csrc/cpu/kernels/word.h"
#include "csrc/cpu/loss/table.h"

namespace ssc::SSC_ISA {

// The lines wanted after a panel's product: the next panel of E, and the rows of dWs to be written.
template <class T>
class NextPanel {
 public:
  NextPanel(const RowChunk<T>& chunk, const T* e, int64_t dim, const int64_t* slot, int64_t count,
            T* out, int64_t out_stride)
      : e_(e + chunk.grads.exps_stride),
        e_end_(e + chunk.grads.exps_stride + chunk.rows * kPanel<T> / kWord<T> * kParts),
        dim_(dim),
        slot_(slot),
        count_(count),
        out_(out),
        out_stride_(out_stride) {}

  // So many lines of each.
  Wanted take(int64_t lines) {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
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

}  // namespace ssc::SSC_ISA

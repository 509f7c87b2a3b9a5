// The caller's parallel-for, type-erased: csrc/cpu starts no threads itself, so that its work runs
// in the pool of PyTorch, under torch.set_num_threads.
#pragma once

#include <cstdint>
#include <type_traits>

namespace ssc {

// Runs body(begin, end) over a partition of [0, n) on the caller's threads. The caller
// chooses the partition, so a body must give the same result however [0, n) is cut.
class ParallelFor {
 public:
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  using Run = void (*)(int64_t n, int64_t grain, Body body, void* context);

  constexpr ParallelFor(Run run, int num_threads) : run_(run), num_threads_(num_threads) {}

  // grain: the smallest piece worth a thread of its own.
  template <class F>
  void operator()(int64_t n, int64_t grain, F&& f) const {
    if (n <= 0) return;
    if (num_threads_ == 1 || n <= grain) {
      f(int64_t{0}, n);
      return;
    }
    using Functor = std::remove_reference_t<F>;
    run_(
        n, grain,
        [](void* context, int64_t begin, int64_t end) {
          (*static_cast<Functor*>(context))(begin, end);
        },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

  int num_threads() const { return num_threads_; }

 private:
  Run run_;
  int num_threads_;
};

// For tests and callers without threads.
inline ParallelFor serial() {
  return {[](int64_t n, int64_t, ParallelFor::Body body, void* context) { body(context, 0, n); },
          1};
}

}  // namespace ssc

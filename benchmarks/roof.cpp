// The roofs that benchmarks compare with: what this machine's cores and memory do at best, measured
// by code that does nothing else. Torch-free; roof.py compiles it on first use and calls it through
// ctypes. Every function returns seconds of steady work, measured between two barriers, so that
// thread start-up never counts.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <vector>

#include "roof_loops.h"

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double thread_cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Runs work(thread, timed) on `threads` threads: first untimed for at least warm_seconds (the cores
// reach their steady frequency; another library's idle threads stop spinning), then once, timed
// from the moment when the last thread is ready until the last one is done; or, with cpu_time, the
// CPU time of the thread that took the most.
template <class Work>
double timed_on_threads(int threads, double warm_seconds, Work&& work, bool cpu_time = false) {
  std::atomic<int> ready{0};
  std::vector<double> finished(static_cast<size_t>(threads));
  std::atomic<int64_t> start_ticks{0};
  auto body = [&](int thread) {
    const auto begin = Clock::now();
    do {
      work(thread, /*timed=*/false);
    } while (seconds_since(begin) < warm_seconds);
    if (ready.fetch_add(1) + 1 == threads) {
      start_ticks.store(Clock::now().time_since_epoch().count());
    }
    while (start_ticks.load() == 0) {
    }
    const double cpu_start = thread_cpu_seconds();
    work(thread, /*timed=*/true);
    const double cpu_seconds = thread_cpu_seconds() - cpu_start;
    const Clock::duration elapsed =
        Clock::now().time_since_epoch() - Clock::duration(start_ticks.load());
    finished[static_cast<size_t>(thread)] =
        cpu_time ? cpu_seconds : std::chrono::duration<double>(elapsed).count();
  };
  std::vector<std::thread> pool;
  for (int thread = 1; thread < threads; ++thread) pool.emplace_back(body, thread);
  body(0);
  for (auto& thread : pool) thread.join();
  double slowest = 0;
  for (const double seconds : finished) slowest = seconds > slowest ? seconds : slowest;
  return slowest;
}

// --- Memory --------------------------------------------------------------------------------------
constexpr size_t kHugePage = size_t{2} << 20;

struct Span {
  size_t begin, end;
};

Span share_of(size_t n, int threads, int thread) {
  const auto t = static_cast<size_t>(thread), all = static_cast<size_t>(threads);
  return {n * t / all, n * (t + 1) / all};
}

typedef float Wide __attribute__((vector_size(64)));

float read_all(const float* data, Span span) {
  Wide sum[4] = {};
  for (size_t i = span.begin; i + 64 <= span.end; i += 64) {
    for (size_t lane = 0; lane < 4; ++lane) {
      sum[lane] += *reinterpret_cast<const Wide*>(data + i + 16 * lane);
    }
  }
  const Wide total = sum[0] + sum[1] + sum[2] + sum[3];
  return total[0];
}

// Reads whole rows in a random order, the rows `distance` ahead being prefetched, like a gather of
// sampled classes. The order comes from a 64-bit LCG, so that no index array is read.
float gather_rows(const float* data, size_t rows, size_t row_floats, size_t reads, uint64_t seed) {
  constexpr size_t kDistance = 8;
  size_t ahead[kDistance];
  uint64_t state = seed * 2 + 1;
  auto next = [&] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<size_t>((static_cast<unsigned __int128>(state) * rows) >> 64);
  };
  for (auto& row : ahead) row = next();
  float sum = 0;
  for (size_t i = 0; i < reads; ++i) {
    const float* row = data + ahead[i % kDistance] * row_floats;
    const size_t coming = next();
    ahead[i % kDistance] = coming;
    for (size_t j = 0; j < row_floats; j += 16)
      __builtin_prefetch(data + coming * row_floats + j, 0, 2);
    for (size_t j = 0; j < row_floats; j += 16) {
      const Wide v = *reinterpret_cast<const Wide*>(row + j);
      sum += v[0];
    }
  }
  return sum;
}

#if defined(__x86_64__)
#define SSC_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SSC_EVERY_CPU
#endif

// The sum of all elements of the rows of these ids, those `distance` ahead being prefetched.
SSC_EVERY_CPU float gather_ids(const float* data, const int64_t* ids, size_t reads,
                               size_t row_floats, size_t distance) {
  Wide sum[4] = {};
  for (size_t i = 0; i < reads; ++i) {
    const float* coming =
        data + static_cast<size_t>(ids[std::min(i + distance, reads - 1)]) * row_floats;
    for (size_t j = 0; j < row_floats; j += 16) __builtin_prefetch(coming + j);
    const float* row = data + static_cast<size_t>(ids[i]) * row_floats;
    for (size_t j = 0; j < row_floats; j += 16) {
      sum[j / 16 % 4] += *reinterpret_cast<const Wide*>(row + j);
    }
  }
  const Wide total = sum[0] + sum[1] + sum[2] + sum[3];
  float result = 0;
  for (int lane = 0; lane < 16; ++lane) result += total[lane];
  return result;
}

typedef uint64_t Words __attribute__((vector_size(64)));

// Arrays of rows that are changed in place, as a weight and an optimizer's states are.
struct RowArrays {
  Words* const* data;
  const size_t* row_words;  // in units of 64 bytes
  size_t count;
};

// array[id] += gradient & mask for the rows of these ids in every array, a shorter gradient being
// used again from its start. With the mask 0, which the compiler doesn't know, all memory is read
// and written and no value changes. `lines` of 64 bytes of each row `distance` ahead are prefetched.
SSC_EVERY_CPU void change_rows(const RowArrays& arrays, const Words* gradient,
                               size_t gradient_words, const int64_t* ids, size_t count,
                               size_t distance, size_t lines, uint64_t mask) {
  for (size_t i = 0; i < count; ++i) {
    const auto coming = static_cast<size_t>(ids[std::min(i + distance, count - 1)]);
    const auto id = static_cast<size_t>(ids[i]);
    const Words* g = gradient + i * gradient_words;
    for (size_t k = 0; k < arrays.count; ++k) {
      const size_t words = arrays.row_words[k], ahead = std::min(lines, words);
      for (size_t d = 0; d < ahead; ++d) {
        __builtin_prefetch(arrays.data[k] + coming * words + d, 1);
      }
    }
    for (size_t k = 0; k < arrays.count; ++k) {
      const size_t words = arrays.row_words[k];
      Words* a = arrays.data[k] + id * words;
      for (size_t begin = 0; begin < words; begin += gradient_words) {
        const size_t part = std::min(gradient_words, words - begin);
        for (size_t d = 0; d < part; ++d) a[begin + d] += g[d] & mask;
      }
    }
  }
}

}  // namespace

extern "C" {

// The work of one iteration of one thread, in the units of `Loop`; 0: not available here.
double roof_work_per_iteration(int kind) { return loop_of(kind).work_per_iteration; }

double roof_loop_seconds(int kind, int threads, int64_t iterations, double warm_seconds) {
  const Loop loop = loop_of(kind);
  if (loop.run == nullptr) return -1;
  const int64_t warm_piece = iterations / 4 + 1;
  return timed_on_threads(threads, warm_seconds,
                          [&](int, bool timed) { loop.run(timed ? iterations : warm_piece); });
}

// A buffer of `bytes` on huge pages where the system grants them, written once so that every page
// is there. Null: no memory.
float* roof_alloc(size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, kHugePage, bytes) != 0) return nullptr;
  madvise(p, bytes, MADV_HUGEPAGE);
  auto* data = static_cast<float*>(p);
  for (size_t i = 0; i < bytes / sizeof(float); ++i) data[i] = 1.0f;
  return data;
}

void roof_free(float* data) { std::free(data); }

// One pass that reads n floats.
double roof_read_seconds(const float* data, size_t n, int threads, double warm_seconds) {
  return timed_on_threads(threads, warm_seconds, [&](int thread, bool) {
    g_sink = read_all(data, share_of(n, threads, thread));
  });
}

// One pass that copies n floats.
double roof_copy_seconds(float* to, const float* from, size_t n, int threads, double warm_seconds) {
  return timed_on_threads(threads, warm_seconds, [&](int thread, bool) {
    const Span span = share_of(n, threads, thread);
    __builtin_memcpy(to + span.begin, from + span.begin, (span.end - span.begin) * sizeof(float));
  });
}

// `reads` rows of row_floats (a multiple of 16) out of a table of `rows`, split over the threads.
double roof_gather_seconds(const float* data, size_t rows, size_t row_floats, size_t reads,
                           int threads, double warm_seconds) {
  return timed_on_threads(threads, warm_seconds, [&](int thread, bool timed) {
    const Span span = share_of(reads, threads, thread);
    g_sink = gather_rows(data, rows, row_floats, timed ? span.end - span.begin : 64,
                         static_cast<uint64_t>(thread) + (timed ? 1000 : 0));
  });
}

// The same for given rows, int64 ids [reads], and a distance of the prefetch.
double roof_gather_ids_seconds(const float* data, const int64_t* ids, size_t reads,
                               size_t row_floats, size_t distance, int threads,
                               double warm_seconds) {
  return timed_on_threads(threads, warm_seconds, [&](int thread, bool timed) {
    const Span span = share_of(reads, threads, thread);
    const size_t count =
        timed ? span.end - span.begin : std::min<size_t>(64, span.end - span.begin);
    g_sink = gather_ids(data, ids + span.begin, count, row_floats, distance);
  });
}

// Reads, changes and writes the rows ids [rows] of `count` arrays with rows of row_words[k] times 64
// bytes, by a gradient with rows of gradient_words times 64 bytes. One thread is timed in CPU time.
double roof_change_seconds(void* const* arrays, const size_t* row_words, size_t count,
                           const void* gradient, size_t gradient_words, const int64_t* ids,
                           size_t rows, size_t distance, size_t lines, uint64_t mask, int threads,
                           double warm_seconds) {
  const RowArrays all{reinterpret_cast<Words* const*>(arrays), row_words, count};
  const auto* values = static_cast<const Words*>(gradient);
  const auto work = [&](int thread, bool timed) {
    const Span span = share_of(rows, threads, thread);
    const size_t count = span.end - span.begin;
    const Words* part = values + span.begin * gradient_words;
    if (timed) {
      change_rows(all, part, gradient_words, ids + span.begin, count, distance, lines, mask);
    } else {  // the gradient alone, so that the timed rows are met where they lie
      g_sink = read_all(reinterpret_cast<const float*>(part), {0, 16 * count * gradient_words});
    }
  };
  return timed_on_threads(threads, warm_seconds, work, /*cpu_time=*/threads == 1);
}

}  // extern "C"

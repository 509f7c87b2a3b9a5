// A sampling profiler of one thread: a timer interrupts the thread that starts it, and the handler
// writes down where it was. Stands beside roof.cpp so that a breakdown of a step needs no tool but
// a compiler, and no clock reads inside the kernels that are measured. Linux.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>

namespace {

constexpr int64_t kCapacity = 1 << 18;
uintptr_t g_where[kCapacity];
volatile int64_t g_count = 0;
timer_t g_timer;

void on_tick(int, siginfo_t*, void* context) {
  const auto& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  const auto at = static_cast<uintptr_t>(machine.gregs[REG_RIP]);
#elif defined(__aarch64__)
  const auto at = static_cast<uintptr_t>(machine.pc);
#else
  const uintptr_t at = 0;
#endif
  if (g_count < kCapacity) g_where[g_count] = at;
  g_count = g_count + 1;
}

}  // namespace

extern "C" {

// Samples the calling thread every `microseconds`; 0 on success.
int profile_start(int64_t microseconds) {
  g_count = 0;
  struct sigaction action = {};
  action.sa_sigaction = on_tick;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  if (sigaction(SIGPROF, &action, nullptr) != 0) return 1;
  sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGPROF;
  // glibc 2.36 and older have no name of their own for this field.
  event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
  if (timer_create(CLOCK_MONOTONIC, &event, &g_timer) != 0) return 2;
  itimerspec spec = {};
  spec.it_interval.tv_nsec = spec.it_value.tv_nsec = static_cast<long>(microseconds) * 1000;
  return timer_settime(g_timer, 0, &spec, nullptr) == 0 ? 0 : 3;
}

// Ends it; the number of samples, which profile_where holds.
int64_t profile_stop() {
  timer_delete(g_timer);
  return g_count < kCapacity ? g_count : kCapacity;
}

const uintptr_t* profile_where() { return g_where; }

}  // extern "C"

// Definitions of the few things that g++ 12 would otherwise take from a glibc newer than 2.28 or a
// libstdc++ newer than GCC 8's, so that the library loads where manylinux_2_28 wheels do. The linker
// is told to resolve exp and log here (--wrap, cmake/torch_library.cmake).
#include <sstream>

// Members that C++20 code calls and that older libraries lack: those of string streams.
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;

extern "C" {
// Whether the process has one thread, of glibc 2.32; 0: reference counts are always atomic.
char __libc_single_threaded = 0;

// The same functions under their first version: glibc 2.29 only took the error handling away.
double ssc_first_exp(double x);
double ssc_first_log(double x);
__asm__(".symver ssc_first_exp, exp@GLIBC_2.2.5");
__asm__(".symver ssc_first_log, log@GLIBC_2.2.5");

double __wrap_exp(double x);
double __wrap_log(double x);
double __wrap_exp(double x) { return ssc_first_exp(x); }
double __wrap_log(double x) { return ssc_first_log(x); }
}

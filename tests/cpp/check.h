// A test harness that fits on a page. A file of tests defines TEST(name) { ... } as often as it
// likes and links main.cpp; the CHECKs print where and what failed, and the program goes on, so
// that one run shows every failure. ctest runs each program once per instruction set.
#pragma once

#include <cmath>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

namespace ssc::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

// Notes printed with the failures inside their scopes: the shape, dtype or seed being tried.
inline std::vector<std::string>& notes() {
  static std::vector<std::string> stack;
  return stack;
}

struct Note {
  explicit Note(std::string text) { notes().push_back(std::move(text)); }
  ~Note() { notes().pop_back(); }
  Note(const Note&) = delete;
  Note& operator=(const Note&) = delete;
};

constexpr int kMaxPrinted = 30;

template <class... Parts>
void fail(const char* file, int line, const Parts&... parts) {
  if (++failures() > kMaxPrinted) return;
  std::cerr.precision(17);
  std::cerr << file << ":" << line << ": ";
  (std::cerr << ... << parts);
  for (const std::string& note : notes()) std::cerr << " [" << note << "]";
  std::cerr << "\n";
}

template <class A, class B>
void check_eq(const char* file, int line, const char* text, const A& a, const B& b) {
  if (!(a == b)) fail(file, line, text, ": got ", a, ", expected ", b);
}

// |got - expected| <= absolute + relative * |expected|; equal infinities and two NaNs pass.
inline void check_close(const char* file, int line, const char* text, double got, double expected,
                        double absolute, double relative) {
  if (got == expected || (std::isnan(got) && std::isnan(expected))) return;
  const double bound = absolute + relative * std::abs(expected);
  if (std::abs(got - expected) <= bound) return;
  fail(file, line, text, ": got ", got, ", expected ", expected, " within ", bound);
}

// True when body throws an exception whose message contains `part`.
inline bool throws_with(const std::string& part, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return std::string(error.what()).find(part) != std::string::npos;
  }
  return false;
}

}  // namespace ssc::test

#define TEST(name)                                                        \
  static void name();                                                     \
  static const ::ssc::test::Register ssc_register_##name(#name, &(name)); \
  static void name()

#define CHECK(condition) \
  ((condition) ? (void)0 : ::ssc::test::fail(__FILE__, __LINE__, "not so: " #condition))
#define CHECK_EQ(got, expected) \
  ::ssc::test::check_eq(__FILE__, __LINE__, #got " == " #expected, got, expected)
#define CHECK_CLOSE(got, expected, absolute, relative)                                        \
  ::ssc::test::check_close(__FILE__, __LINE__, #got " ~ " #expected, got, expected, absolute, \
                           relative)
#define CHECK_THROWS(part, statement) CHECK(::ssc::test::throws_with(part, [&] { statement; }))

// Launchers (registry.h) as Python calls them: for this executor's module and for that of
// tests/ptx.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "csrc/simt/registry.h"

namespace ssc::simt {

inline Value to_value(const pybind11::handle& object) {
  namespace py = pybind11;
  if (py::isinstance<py::float_>(object)) return object.cast<double>();
  if (!py::isinstance<py::int_>(object)) {
    throw py::type_error("a launcher takes int, bool and float, not " +
                         std::string(py::str(py::type::of(object))));
  }
  const py::int_ integer(py::reinterpret_borrow<py::object>(object));
  const bool negative = integer < py::int_(0);
  return negative ? integer.cast<int64_t>() : static_cast<int64_t>(integer.cast<uint64_t>());
}

inline int call_launcher(const std::string& name, const pybind11::args& arguments) {
  for (const Launcher& launcher : launchers()) {
    if (launcher.name != name) continue;
    if (launcher.arity != arguments.size()) {
      throw pybind11::type_error(name + " takes " + std::to_string(launcher.arity) +
                                 " arguments, got " + std::to_string(arguments.size()));
    }
    std::vector<Value> values;
    for (const pybind11::handle argument : arguments) values.push_back(to_value(argument));
    return static_cast<int>(launcher.call(values));
  }
  throw pybind11::key_error("no launcher " + name);
}

inline void define_launchers(pybind11::module_& m) {
  m.def("call", &call_launcher, "Calls a launcher; returns its cudaError_t as an integer.");
  m.def("launchers", [] {
    pybind11::dict arity;
    for (const Launcher& launcher : launchers()) arity[launcher.name.c_str()] = launcher.arity;
    return arity;
  });
}

}  // namespace ssc::simt

// The kernel bench over an executor of PTX: the module of csrc/simt/bind.cpp with what that
// executor has of its options, for tests/helpers/simt_bench.py.
#include <ptx.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrc/simt/python_launchers.h"

namespace py = pybind11;

namespace {

ptx::Options::Schedule schedule_named(const std::string& name) {
  if (name == "ascending") return ptx::Options::ascending;
  if (name == "descending") return ptx::Options::descending;
  if (name == "shuffled") return ptx::Options::shuffled;
  throw py::value_error("schedule '" + name + "': ascending, descending or shuffled");
}

// Options that csrc/simt alone has are accepted and have no effect.
void configure(const std::string& schedule, uint64_t seed, bool bounds, const py::kwargs&) {
  ptx::options.schedule = schedule_named(schedule);
  ptx::options.seed = seed;
  ptx::options.bounds = bounds;
}

py::list finding_dicts() {
  py::list list;
  for (const ptx::Finding& finding : ptx::findings) {
    py::dict entry;
    entry["kind"] = finding.kind;
    entry["message"] = finding.message;
    entry["place"] = finding.place;
    entry["count"] = finding.count;
    list.append(entry);
  }
  return list;
}

}  // namespace

PYBIND11_MODULE(ssc_ptx_bench, m) {
  m.doc() = "CUDA kernels as nvcc compiles them, on the CPU: see tests/ptx/README.md";
  m.attr("variant") = "ptx";
  m.def("configure", &configure, py::kw_only(), py::arg("schedule") = "ascending",
        py::arg("seed") = 0, py::arg("bounds") = true);
  m.def(
      "add_buffer",
      [](const std::string& name, uintptr_t address, uintptr_t bytes, bool writable, bool) {
        ptx::buffers.push_back({name, address, address + bytes, writable});
      },
      py::arg("name"), py::arg("address"), py::arg("bytes"), py::arg("writable"),
      py::arg("initialised"));
  m.def("clear_buffers", [] { ptx::buffers.clear(); });
  ssc::simt::define_launchers(m);
  m.def("findings", &finding_dicts);
  m.def("clear_findings", [] { ptx::findings.clear(); });
  m.def("statistics", [] { return py::list(); });
  m.def("clear_statistics", [] {});
}

// The kernel bench: a Python module that calls launchers on memory that it is given by address. The
// launchers are those of registry.h; tests/helpers/simt_bench.py wraps this for torch's tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "csrc/simt/buffers.h"
#include "csrc/simt/executor.h"
#include "csrc/simt/python_launchers.h"
#include "csrc/simt/report.h"
#include "csrc/simt/statistics.h"

namespace py = pybind11;

namespace ssc::simt {

namespace {

Schedule schedule_named(const std::string& name) {
  if (name == "ascending") return Schedule::ascending;
  if (name == "descending") return Schedule::descending;
  if (name == "shuffled") return Schedule::shuffled;
  throw py::value_error("schedule '" + name + "': ascending, descending or shuffled");
}

void configure(const std::string& schedule, uint64_t seed, bool strict_exit, size_t shared_limit,
               bool races, bool bounds, bool initialised, bool statistics, uint32_t max_findings) {
  running.options = {schedule_named(schedule),
                     seed,
                     strict_exit,
                     shared_limit,
                     races,
                     bounds,
                     initialised,
                     statistics,
                     max_findings};
}

py::list finding_dicts() {
  py::list list;
  for (const Report& report : findings()) {
    py::dict entry;
    entry["kind"] = finding_name(report.finding);
    entry["message"] = report.message;
    entry["place"] = report.place;
    entry["count"] = report.count;
    list.append(entry);
  }
  return list;
}

py::list statistics_dicts() {
  py::list list;
  for (const LineStatistics& line : statistics()) {
    py::dict entry;
    entry["file"] = line.file;
    entry["line"] = line.line;
    entry["function"] = line.function;
    entry["kernel"] = line.kernel;
    entry["kind"] = line.kind;
    entry["instructions"] = line.instructions;
    entry["lanes"] = line.lanes;
    entry["bytes"] = line.bytes;
    entry["transfers"] = line.transfers;
    entry["ideal"] = line.ideal;
    list.append(entry);
  }
  return list;
}

PYBIND11_MODULE(SSC_SIMT_MODULE, m) {
  const Options defaults;
  m.doc() = "CUDA kernels on the CPU: see csrc/simt/README.md";
  m.attr("variant") = SSC_SIMT_VARIANT;
  m.def("configure", &configure, py::kw_only(), py::arg("schedule") = "ascending",
        py::arg("seed") = defaults.seed, py::arg("strict_exit") = defaults.strict_exit,
        py::arg("shared_limit") = defaults.shared_limit, py::arg("races") = defaults.races,
        py::arg("bounds") = defaults.bounds, py::arg("initialised") = defaults.initialised,
        py::arg("statistics") = defaults.statistics,
        py::arg("max_findings") = defaults.max_findings,
        "Sets the options of the launches to come; one that is not named gets its default.");
  m.def(
      "add_buffer",
      [](const std::string& name, uintptr_t address, uintptr_t bytes, bool writable,
         bool initialised) { add_buffer({name, address, bytes, writable, initialised}); },
      py::arg("name"), py::arg("address"), py::arg("bytes"), py::arg("writable"),
      py::arg("initialised"), "Declares memory that kernels may read and, if writable, write.");
  m.def("clear_buffers", &clear_buffers);
  define_launchers(m);
  m.def("findings", &finding_dicts);
  m.def("clear_findings", &clear_findings);
  m.def("statistics", &statistics_dicts);
  m.def("clear_statistics", &clear_statistics);
}

}  // namespace
}  // namespace ssc::simt

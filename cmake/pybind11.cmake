# What a Python module of the tests is built with: Python::Module and ssc_pybind11_include.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(COMMAND "${Python_EXECUTABLE}" -c "import pybind11; print(pybind11.get_include())"
                OUTPUT_VARIABLE ssc_pybind11_include OUTPUT_STRIP_TRAILING_WHITESPACE
                ERROR_QUIET)
if(NOT ssc_pybind11_include)
  message(FATAL_ERROR "the modules of the tests need pybind11 in ${Python_EXECUTABLE}: see "
                      "requirements-dev.txt")
endif()

# Every target makes what it needs and can be the first command in a bare checkout.
#   make demo    train a language model over ~160,000 classes with sampled and with full softmax
#   make test    the tests that take minutes: reference, this CPU's kernels, CUDA's on the CPU
#   make test-all   those, then all others: sanitizers, other instruction sets, every schedule
#   make cuda    _C_cuda.so against this torch, for tests of the library itself; needs nvcc
#   make cuda-torch-check   the package built and imported with a CUDA build of torch (gigabytes)
#   make simt    the CUDA kernels for the CPU (csrc/simt), which the Python tests run
#   make ptx-check EXECUTOR=...   the tests on the kernels as nvcc compiles them (tests/ptx)
#   make lint    formatting, types, layering
#   make bench   short benchmarks
#   make docs    the documentation as a site, in build/site
#   make gpu-check   on a machine with a GPU: build, tests, sanitizers, benchmarks, one report
#   make wheel   the wheel that goes to users (manylinux_2_28), in dist; CUDA=1: with CUDA kernels
#   make torch-matrix   that wheel without a compiler, with torch 2.11 and the newest (gigabytes)
#   make hf-kernel   a kernel for Hugging Face's `kernels`, in dist/hf-kernel; CUDA=1 likewise
#   make build   the compiled library, in place (an edit to one file recompiles that file)
#   make clean   removes what was built; the virtual environment stays (rm -r .venv)
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)

BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := build
.PHONY: demo test test-all test-slow test-cpp simt simt-ops ptx-check cuda cuda-torch-check \
        gpu-check lint bench docs wheel torch-matrix hf-kernel build clean
.DELETE_ON_ERROR:

# The virtual environment, with the pinned tools of requirements-dev.txt.
$(BIN)/.complete: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# The package in that environment, as a link to this checkout; pure Python, `build` adds the library.
$(BIN)/.package: $(BIN)/.complete pyproject.toml setup.py
	SSC_SKIP_BUILD=1 $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@

build: $(BIN)/.package
	SSC_WERROR=1 MAX_JOBS=$(JOBS) $(BIN)/python setup.py --quiet build_ext --inplace

# Threads that wait for others spin by default, in the way of the other workers.
RUN_TESTS = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
ON_LINUX := $(filter Linux,$(shell uname -s))

test: build $(if $(ON_LINUX),simt-ops)
	$(BIN)/python tools/check_isa_symbols.py build/dev
	$(BIN)/python tools/check_prefetches.py build/dev
	$(RUN_TESTS) -m "not slow" $(PYTEST_ARGS)

test-slow: test-cpp build $(if $(ON_LINUX),simt cuda)
	$(RUN_TESTS) -m slow $(PYTEST_ARGS)

test-all: test test-slow

# csrc/core and csrc/cpu under AddressSanitizer and UndefinedBehaviorSanitizer, per instruction set;
# AVX512-BF16 emulated on AVX-512 where this CPU lacks it, and AMX everywhere: what it reads and
# writes, the sanitizers can't see.
EMULATE_BF16 = $(shell grep -qsm1 avx512_bf16 /proc/cpuinfo && echo OFF || echo ON)
test-cpp: $(BIN)/.complete
	cmake -S . -B build/sanitize -G Ninja -DSSC_BUILD_LIBRARY=OFF -DSSC_BUILD_TESTS=ON \
	    -DSSC_SANITIZE=ON -DSSC_WERROR=ON -DSSC_EMULATE_BF16=$(EMULATE_BF16) \
	    -DSSC_EMULATE_AMX=ON
	cmake --build build/sanitize --parallel $(JOBS)
	ctest --test-dir build/sanitize --output-on-failure --parallel $(JOBS)

# Where the torch package is, without importing it.
TORCH_FOLDER := import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])

# csrc/cuda's kernels, in three builds, as Python modules in build/simt/simt, and the CUDA operators;
# or these alone, over the plain kernels.
simt simt-ops: $(BIN)/.complete
	cmake -S . -B build/simt -G Ninja -DSSC_BUILD_LIBRARY=OFF -DSSC_BUILD_SIMT=ON -DSSC_WERROR=ON \
	    -DCMAKE_CXX_COMPILER=g++ -DPython_EXECUTABLE="$(abspath $(BIN)/python)" \
	    -DSSC_TORCH_DIR="$$($(BIN)/python -c "$(TORCH_FOLDER)")"
	cmake --build build/simt --parallel $(JOBS) --target ssc_$(subst -,_,$@)

# The CUDA library, linked as in an installation but kept out of the package: one architecture, for
# time's sake. Without nvcc there is none, and its tests are skipped.
CUDA_ARCHITECTURES ?= 90-real
NVCC := $(firstword $(wildcard $(or $(CUDA_HOME),/usr/local/cuda)/bin/nvcc) \
                    $(if $(CUDA_HOME),,$(shell command -v nvcc)))
cuda: $(BIN)/.complete
ifeq ($(NVCC),)
	@echo "make cuda: no nvcc in CUDA_HOME, in /usr/local/cuda or on PATH: nothing to build"
else
	cmake -S . -B build/cuda -G Ninja -DSSC_WITH_CUDA=ON -DSSC_WERROR=ON \
	    -DCMAKE_CUDA_COMPILER=$(NVCC) -DCMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES) \
	    -DSSC_TORCH_DIR="$$($(BIN)/python -c "$(TORCH_FOLDER)")"
	cmake --build build/cuda --parallel $(JOBS) --target _C_cuda
endif

# The same tests on what nvcc makes of the kernels, run on the CPU by an executor of PTX whose folder
# EXECUTOR names. EXECUTOR_ARCHS="80 90" restricts the architectures, EXECUTOR_TESTS=chosen the tests
# to those of tests/ptx/chosen.txt, which execute the same kernels; PTX_CHECK_ARGS=--choose makes that.
EXECUTOR_ARCHS ?= all
EXECUTOR_TESTS ?= all
PTX_ARCHITECTURES := $(if $(filter all,$(EXECUTOR_ARCHS)),75 80 90 120,$(EXECUTOR_ARCHS))
empty :=
ptx-check: build
	@test -n "$(EXECUTOR)" || \
	    { echo "make ptx-check EXECUTOR=<folder>: see tests/ptx/README.md" >&2; exit 1; }
	@test -n "$(NVCC)" || \
	    { echo "make ptx-check: no nvcc in CUDA_HOME, /usr/local/cuda or PATH" >&2; exit 1; }
	cmake -S . -B build/ptx -G Ninja -DSSC_BUILD_LIBRARY=OFF -DSSC_BUILD_PTX=ON -DSSC_WERROR=ON \
	    -DCMAKE_CUDA_COMPILER=$(NVCC) -DCMAKE_CXX_COMPILER=g++ \
	    -DPython_EXECUTABLE="$(abspath $(BIN)/python)" \
	    -DSSC_PTX_EXECUTOR=$(abspath $(EXECUTOR)) \
	    -DSSC_PTX_ARCHITECTURES="$(subst $(empty) $(empty),;,$(strip $(PTX_ARCHITECTURES)))" \
	    -DSSC_TORCH_DIR="$$($(BIN)/python -c "$(TORCH_FOLDER)")"
	cmake --build build/ptx --parallel $(JOBS) --target ssc_ptx
	$(BIN)/python tools/ptx_check.py build/ptx/ptx --architectures $(PTX_ARCHITECTURES) \
	    --tests $(EXECUTOR_TESTS) --jobs $(JOBS) $(PTX_CHECK_ARGS)

# The CUDA build of torch comes from the package index into an environment of its own, so this is
# no part of `make test`. No GPU is needed.
CUDA_TORCH ?= torch==2.14.1
cuda-torch-check:
	$(PYTHON) tools/cuda_torch_check.py "$(CUDA_TORCH)" --jobs $(JOBS)

lint: $(BIN)/.package
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run -Werror $$(find csrc tests benchmarks tools \
	    -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/python tools/check_layers.py
	$(BIN)/python tools/check_kernels.py

demo: build
	$(BIN)/python examples/code_lm.py $(DEMO_ARGS)

bench: build
	for name in sample loss options optim per_row scale memory stages isa; do \
	    $(BIN)/python benchmarks/bench_$$name.py --quick || exit 1; \
	done

# Strict: a link that leads nowhere fails. mkdocs-material's own notices are about its successor.
docs: $(BIN)/.package
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet
	@echo "build/site/index.html"

# With the Python that has torch for CUDA, not this checkout's environment; fetches nothing.
gpu-check:
	$(PYTHON) tools/gpu_check.py

# CUDA=1: with the CUDA kernels, for all architectures or those of TORCH_CUDA_ARCH_LIST.
WITH_CUDA := $(filter-out 0,$(CUDA))
WHEELS := dist/$(if $(WITH_CUDA),cuda,cpu)
NO_NVCC = CUDA=1 needs nvcc, which is not in $(or $(CUDA_HOME),/usr/local/cuda or on PATH): set CUDA_HOME
WITH_NVCC = $(if $(WITH_CUDA),--nvcc $(or $(NVCC),$(error $(NO_NVCC))))
wheel: $(BIN)/.complete
	MAX_JOBS=$(JOBS) $(BIN)/python tools/make_wheel.py --output $(WHEELS) $(WITH_NVCC)

# TORCHES="torch==2.11.0 torch==2.13.0" chooses them.
torch-matrix: wheel
	$(BIN)/python tools/torch_matrix.py $(WHEELS)/*-manylinux_2_28_*.whl $(TORCHES) --jobs $(JOBS)

# The CPU's kernels are those of `make build`.
hf-kernel: build
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(BIN)/python tools/hf_kernel.py $(WITH_NVCC) \
	    -DSSC_CPU_LIBRARY="$(CURDIR)/build/dev/libssc_cpu.a"

clean:
	rm -rf build dist *.egg-info sampled_softmax_cuda/*.so

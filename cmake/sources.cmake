# The one list of sources. Paths from the repository's root, one per line, in alphabetical order.

# Plain C++, compiled once for the baseline CPU.
set(SSC_CPU_SOURCES
    csrc/cpu/base/huge_pages.cpp
    csrc/cpu/base/isa.cpp
    csrc/cpu/base/workspace.cpp
    csrc/cpu/loss/forward.cpp
    csrc/cpu/loss/plan.cpp
    csrc/cpu/loss/step.cpp
    csrc/cpu/loss/table.cpp
    csrc/cpu/loss/targets.cpp
    csrc/cpu/loss/unit_rows.cpp
    csrc/cpu/per_row/forward.cpp
    csrc/cpu/per_row/gradients.cpp
    csrc/cpu/per_row/samples.cpp
    csrc/cpu/per_row/scatter.cpp
    csrc/cpu/sample/alias_table.cpp
    csrc/cpu/sample/rows.cpp
    csrc/cpu/sample/sample.cpp
    csrc/cpu/update/update.cpp
)

# Kernels (cmake/kernels.cmake) that must give the same bits on every CPU: -ffp-contract=off.
set(SSC_KERNEL_SOURCES_EXACT
    csrc/cpu/kernels/sample.cpp
    csrc/cpu/kernels/update.cpp
    csrc/cpu/kernels/update_rows.cpp
)

# Kernels whose products may be contracted into fused multiply-adds: -ffp-contract=fast. Those of
# single rows, and those of matrices packed into words (csrc/cpu/kernels/word.h).
set(SSC_KERNEL_SOURCES_ROWS
    csrc/cpu/kernels/per_row.cpp
    csrc/cpu/kernels/rows.cpp
)
set(SSC_KERNEL_SOURCES_MATMUL
    csrc/cpu/kernels/gather.cpp
    csrc/cpu/kernels/score.cpp
    csrc/cpu/kernels/score_negatives.cpp
    csrc/cpu/kernels/sweep.cpp
    csrc/cpu/kernels/table.cpp
)
# The rest of those in vectors, and in tiles of the matrix unit (csrc/cpu/kernels/amx_tile.h).
set(SSC_KERNEL_SOURCES_VECTORS
    csrc/cpu/kernels/input_grad.cpp
    csrc/cpu/kernels/logits.cpp
    csrc/cpu/kernels/pack.cpp
    csrc/cpu/kernels/weight_grad.cpp
)
set(SSC_KERNEL_SOURCES_TILES
    csrc/cpu/kernels/amx_input_grad.cpp
    csrc/cpu/kernels/amx_logits.cpp
    csrc/cpu/kernels/amx_pack.cpp
    csrc/cpu/kernels/amx_weight_grad.cpp
)

# The only sources that include torch headers.
set(SSC_OPS_SOURCES
    csrc/ops/cpu/exact.cpp
    csrc/ops/cpu/info.cpp
    csrc/ops/cpu/loss.cpp
    csrc/ops/cpu/memory.cpp
    csrc/ops/cpu/negatives.cpp
    csrc/ops/cpu/optim.cpp
    csrc/ops/cpu/per_row.cpp
    csrc/ops/cpu/sample.cpp
    csrc/ops/cpu/targets.cpp
    csrc/ops/cpu/unit_rows.cpp
    csrc/ops/schema.cpp
)

# The CUDA operators, compiled by the C++ compiler.
set(SSC_CUDA_OPS_SOURCES
    csrc/ops/cuda/device.cpp
    csrc/ops/cuda/exact.cpp
    csrc/ops/cuda/info.cpp
    csrc/ops/cuda/loss.cpp
    csrc/ops/cuda/negatives.cpp
    csrc/ops/cuda/optim.cpp
    csrc/ops/cuda/per_row.cpp
    csrc/ops/cuda/sample.cpp
)

# tests/cpp: one executable per file, run once per instruction set.
set(SSC_CPP_TESTS
    tests/cpp/test_amx_tile.cpp
    tests/cpp/test_backward.cpp
    tests/cpp/test_bf16_pair.cpp
    tests/cpp/test_garbage.cpp
    tests/cpp/test_isa.cpp
    tests/cpp/test_loss.cpp
    tests/cpp/test_negatives.cpp
    tests/cpp/test_per_row.cpp
    tests/cpp/test_philox.cpp
    tests/cpp/test_sample.cpp
    tests/cpp/test_targets.cpp
    tests/cpp/test_unit_rows.cpp
    tests/cpp/test_update.cpp
)

# csrc/simt: the executor of CUDA kernels on the CPU, and the kernels that its tests run.
set(SSC_SIMT_SOURCES
    csrc/simt/async_copy.cpp
    csrc/simt/bind.cpp
    csrc/simt/buffers.cpp
    csrc/simt/collective.cpp
    csrc/simt/executor.cpp
    csrc/simt/fiber.cpp
    csrc/simt/registry.cpp
    csrc/simt/report.cpp
    csrc/simt/runtime.cpp
    csrc/simt/shared_memory.cpp
    csrc/simt/symbols.cpp
    csrc/simt/tensor_core.cpp
)
set(SSC_SIMT_KERNELS
    tests/simt/barriers.cu
    tests/simt/basics.cu
    tests/simt/bind_loss.cu
    tests/simt/bind_negatives.cu
    tests/simt/bind_per_row.cu
    tests/simt/bind_sample.cu
    tests/simt/bind_step.cu
    tests/simt/bind_update.cu
    tests/simt/blocks.cu
    tests/simt/errors.cu
    tests/simt/gemm_tile.cu
    tests/simt/memory.cu
    tests/simt/tf32.cu
    tests/simt/warps.cu
)

# The CUDA operators over an executor, under another name and for tensors of the CPU; and the rest of
# them over csrc/simt.
set(SSC_SIMT_OPS_SOURCES
    csrc/ops/cuda/exact.cpp
    csrc/ops/cuda/loss.cpp
    csrc/ops/cuda/negatives.cpp
    csrc/ops/cuda/optim.cpp
    csrc/ops/cuda/per_row.cpp
    csrc/ops/cuda/sample.cpp
    csrc/ops/schema.cpp
    tests/simt_ops/cpu_device.cpp
)
set(SSC_SIMT_TWIN_SOURCES
    tests/simt_ops/findings.cpp
    tests/simt_ops/sorts.cpp
)

# csrc/cuda: compiled by nvcc for _C_cuda.so and by g++ for csrc/simt.
set(SSC_CUDA_SOURCES
    csrc/cuda/loss/class_list.cu
    csrc/cuda/loss/forward.cu
    csrc/cuda/loss/gradients.cu
    csrc/cuda/loss/products.cu
    csrc/cuda/loss/row_stages.cu
    csrc/cuda/loss/score.cu
    csrc/cuda/loss/step.cu
    csrc/cuda/loss/total.cu
    csrc/cuda/negatives/score.cu
    csrc/cuda/negatives/stages.cu
    csrc/cuda/negatives/step.cu
    csrc/cuda/per_row/gradients.cu
    csrc/cuda/per_row/score.cu
    csrc/cuda/sample/distinct.cu
    csrc/cuda/sample/filtered_rows.cu
    csrc/cuda/sample/race.cu
    csrc/cuda/sample/rows.cu
    csrc/cuda/sample/with_replacement.cu
    csrc/cuda/update/history.cu
    csrc/cuda/update/row_plan.cu
    csrc/cuda/update/row_update.cu
)

# csrc/cuda: what g++ can't compile because it uses CUB.
set(SSC_CUDA_CUB_SOURCES
    csrc/cuda/loss/class_sort.cu
    csrc/cuda/sample/race_sort.cu
)

# Those kernels as nvcc compiles them, over an executor of PTX (tests/ptx): the executor's own
# sources, in its folder, and what binds it to our tests.
set(SSC_PTX_EXECUTOR_SOURCES
    execute.cpp
    parse.cpp
    runtime.cpp
)
set(SSC_PTX_BENCH_SOURCES
    csrc/simt/registry.cpp
    tests/ptx/bench.cpp
    tests/ptx/launches.cpp
)
set(SSC_PTX_TWIN_SOURCES
    tests/ptx/findings.cpp
    tests/ptx/launches.cpp
)

# The one list of sources. Paths from the repository's root, one per line, in alphabetical order.

# Plain C++, compiled once for the baseline CPU.
set(SSC_CPU_SOURCES
    csrc/cpu/huge_pages.cpp
    csrc/cpu/isa.cpp
    csrc/cpu/loss_grads.cpp
    csrc/cpu/loss_leaf.cpp
    csrc/cpu/loss_rows.cpp
    csrc/cpu/per_row.cpp
    csrc/cpu/per_row_grads.cpp
    csrc/cpu/per_row_scatter.cpp
    csrc/cpu/per_row_source.cpp
    csrc/cpu/row_draws.cpp
    csrc/cpu/sample.cpp
    csrc/cpu/sample_alias.cpp
    csrc/cpu/sample_plan.cpp
    csrc/cpu/target_rows.cpp
    csrc/cpu/unit_rows.cpp
    csrc/cpu/workspace.cpp
)

# Leaves (cmake/leaves.cmake) that must give the same bits on every CPU: -ffp-contract=off.
set(SSC_LEAF_SOURCES_EXACT
    csrc/cpu/sample_leaf.cpp
)

# Leaves whose products may be contracted into fused multiply-adds: -ffp-contract=fast. Those of
# single rows, and those of matrices packed into words (csrc/cpu/word.h).
set(SSC_LEAF_SOURCES_ROWS
    csrc/cpu/per_row_leaf.cpp
    csrc/cpu/row_leaf.cpp
)
set(SSC_LEAF_SOURCES_MATMUL
    csrc/cpu/input_grad_leaf.cpp
    csrc/cpu/logits_leaf.cpp
    csrc/cpu/pack_leaf.cpp
    csrc/cpu/score_leaf.cpp
    csrc/cpu/score_link_leaf.cpp
    csrc/cpu/sweep_leaf.cpp
    csrc/cpu/table_leaf.cpp
    csrc/cpu/weight_grad_leaf.cpp
)

# The only sources that include torch headers.
set(SSC_OPS_SOURCES
    csrc/ops/exact.cpp
    csrc/ops/info.cpp
    csrc/ops/loss.cpp
    csrc/ops/memory.cpp
    csrc/ops/negatives.cpp
    csrc/ops/per_row.cpp
    csrc/ops/sample.cpp
    csrc/ops/sample_rows.cpp
    csrc/ops/schema.cpp
    csrc/ops/targets.cpp
    csrc/ops/unit_rows.cpp
)

# The CUDA operators, compiled by the C++ compiler.
set(SSC_CUDA_OPS_SOURCES
    csrc/ops/cuda_device.cpp
    csrc/ops/exact_cuda.cpp
    csrc/ops/info_cuda.cpp
    csrc/ops/loss_cuda.cpp
    csrc/ops/negatives_cuda.cpp
    csrc/ops/per_row_cuda.cpp
    csrc/ops/sample_cuda.cpp
    csrc/ops/sample_rows_cuda.cpp
)

# tests/cpp: one executable per file, run once per instruction set.
set(SSC_CPP_TESTS
    tests/cpp/test_backward.cpp
    tests/cpp/test_bf16_pair.cpp
    tests/cpp/test_isa.cpp
    tests/cpp/test_loss.cpp
    tests/cpp/test_negatives.cpp
    tests/cpp/test_per_row.cpp
    tests/cpp/test_philox.cpp
    tests/cpp/test_sample.cpp
    tests/cpp/test_targets.cpp
    tests/cpp/test_unit_rows.cpp
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
    csrc/ops/exact_cuda.cpp
    csrc/ops/loss_cuda.cpp
    csrc/ops/negatives_cuda.cpp
    csrc/ops/per_row_cuda.cpp
    csrc/ops/sample_cuda.cpp
    csrc/ops/sample_rows_cuda.cpp
    csrc/ops/schema.cpp
    tests/simt_ops/cpu_device.cpp
)
set(SSC_SIMT_TWIN_SOURCES
    tests/simt_ops/findings.cpp
    tests/simt_ops/sorts.cpp
)

# csrc/cuda: compiled by nvcc for _C_cuda.so and by g++ for csrc/simt.
set(SSC_CUDA_SOURCES
    csrc/cuda/class_list.cu
    csrc/cuda/draw_filtered_rows.cu
    csrc/cuda/draw_rows.cu
    csrc/cuda/grads.cu
    csrc/cuda/loss_and_grads.cu
    csrc/cuda/loss_rows.cu
    csrc/cuda/negative_loss.cu
    csrc/cuda/negatives.cu
    csrc/cuda/per_row_grads.cu
    csrc/cuda/per_row_score.cu
    csrc/cuda/products.cu
    csrc/cuda/reduction.cu
    csrc/cuda/rows.cu
    csrc/cuda/sample.cu
    csrc/cuda/sample_distinct.cu
    csrc/cuda/sample_race.cu
    csrc/cuda/score.cu
    csrc/cuda/score_negatives.cu
)

# csrc/cuda: what g++ can't compile because it uses CUB.
set(SSC_CUDA_CUB_SOURCES
    csrc/cuda/class_sort.cu
    csrc/cuda/race_sort.cu
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

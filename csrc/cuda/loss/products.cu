// The two matmuls of the backward: dH's P Ws and dWs' P^T H, the gather of Ws again part of the
// copy into shared memory.
//
// A block owns a kM by kN tile of the result and a split of k. Global traffic, tiles as in
// score.cu:
//   P Ws     sizeof(T) (B S ceil(D / kN) + S D ceil(B / kM)) + 4 splits B D bytes
//   P^T H    sizeof(T) (B S ceil(D / kN) + B D ceil(S / kM)) + 4 S D bytes (8 when accumulating)
#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/loss/gradients.h"
#include "csrc/cuda/tile/loop.h"
#include "csrc/cuda/tile/store.h"
#include "csrc/cuda/tile/tile.h"

namespace ssc::cuda {
namespace {

// out[split][m][n] (+)= Σ_k A[m][k] B[k][n], out's rows being n long.
template <class Tile, Rows kRows>
struct ProductArguments {
  RowSource<typename Tile::Element, Rows::all> a;
  RowSource<typename Tile::Element, kRows> b;
  int64_t m, n, k;
  typename Tile::Accumulator* out;
  bool accumulate;
};

// One hides the other's waits. With 128 registers a thread, tiles of floats would spill.
template <class Tile>
constexpr int kResidentBlocks = Tile::kTensorCores && sizeof(typename Tile::Element) == 2 ? 2 : 1;

template <class Tile, Rows kRows, int kAlign>
__global__ void __launch_bounds__(kTileThreads, kResidentBlocks<Tile>)
    product_kernel(const __grid_constant__ ProductArguments<Tile, kRows> p) {
  if constexpr (!runs_here<Tile>()) {
    __trap();
    return;
  }
  using T = typename Tile::Element;
  T* const stages = dynamic_shared<T>();
  const int64_t first_m = static_cast<int64_t>(blockIdx.y) * Tile::kM;
  const int64_t first_n = static_cast<int64_t>(blockIdx.x) * Tile::kN;
  const int64_t steps = tile_steps<Tile>(p.k);
  const int begin = static_cast<int>(steps * blockIdx.z / gridDim.z);
  const int end = static_cast<int>(steps * (blockIdx.z + 1) / gridDim.z);

  OperandCopy<T, Rows::all, Tile::kA, Tile::kM, kAlign> copy_a(p.a, first_m);
  OperandCopy<T, kRows, Tile::kB, Tile::kN, kAlign> copy_b(p.b, first_n);
  Tile tile;
  tile.clear();
  multiply_tile(tile, copy_a, copy_b, begin, end, stages);

  auto* const out = p.out + static_cast<int64_t>(blockIdx.z) * p.m * p.n;
  store_tile(tile, out + first_m * p.n + first_n, p.n, p.m - first_m, p.n - first_n, p.accumulate);
}

template <class Tile, Rows kRows>
cudaError_t product(const ProductArguments<Tile, kRows>& arguments, int splits,
                    cudaStream_t stream) {
  const auto& p = arguments;
  if (p.m == 0 || p.n == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.n, Tile::kN)),
                  static_cast<unsigned>(ceil_div(p.m, Tile::kM)), static_cast<unsigned>(splits));
  return with_alignment(p.a, p.b, [&](auto align) {
    constexpr int kBytes = kPipelineBytes<Tile>;
    constexpr auto kernel = product_kernel<Tile, kRows, decltype(align)::value>;
    const cudaError_t error = allow_shared(kernel, kBytes, 0);
    return error != cudaSuccess ? error
                                : launch(kernel, grid, kTileThreads, kBytes, stream, arguments);
  });
}

}  // namespace

template <class T>
cudaError_t input_products(const GradChunk<T>& chunk, typename GradChunk<T>::A* partial, int splits,
                           cudaStream_t stream) {
  const LossProblem<T>& p = chunk.problem;
  const RowSource<T, Rows::all> a = {chunk.probabilities, chunk.stride, p.batch, chunk.stride};
  const RowSource<T, Rows::chosen> b = {p.weight, p.weight_stride, p.samples,
                                        p.dim,    p.ids,           p.classes};
  return with_tile<T, Order::along_k, Order::along_extent>(chunk.path, [&](auto tile) {
    using Tile = typename decltype(tile)::type;
    const ProductArguments<Tile, Rows::chosen> arguments{a,         b,       p.batch, p.dim,
                                                         p.samples, partial, false};
    return product(arguments, splits, stream);
  });
}

template <class T>
cudaError_t weight_products(const GradChunk<T>& chunk, typename GradChunk<T>::A* rows,
                            bool accumulate, cudaStream_t stream) {
  const LossProblem<T>& p = chunk.problem;
  const RowSource<T, Rows::all> a = {chunk.probabilities, chunk.stride, p.batch, chunk.stride};
  const RowSource<T, Rows::counted> b = {p.input,  p.input_stride, p.batch,       p.dim,
                                         p.target, p.batch,        p.ignore_index};
  return with_tile<T, Order::along_extent, Order::along_extent>(chunk.path, [&](auto tile) {
    using Tile = typename decltype(tile)::type;
    const ProductArguments<Tile, Rows::counted> arguments{a,       b,    p.samples, p.dim,
                                                          p.batch, rows, accumulate};
    return product(arguments, 1, stream);
  });
}

#define SSC_PRODUCTS_INSTANCE(T)                                                                 \
  template cudaError_t input_products(const GradChunk<T>&, GradChunk<T>::A*, int, cudaStream_t); \
  template cudaError_t weight_products(const GradChunk<T>&, GradChunk<T>::A*, bool, cudaStream_t)
SSC_FOR_TYPES(SSC_PRODUCTS_INSTANCE);
#undef SSC_PRODUCTS_INSTANCE

}  // namespace ssc::cuda

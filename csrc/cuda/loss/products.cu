// The two matmuls of the backward: dH's P Ws and dWs' P^T H, the gather of Ws again part of the
// copy into shared memory.
//
// A block owns a kM by kN tile of the result and a split of k. Global traffic, tiles as in
// score.cu:
//   P Ws     sizeof(T) (B S ceil(D / kN) + S D ceil(B / kM)) bytes; beside them 4 splits B D, or,
//            where there is one split, sizeof(T) B D for dH and as much for the targets' rows of W
//   P^T H    sizeof(T) (B S ceil(D / kN) + B D ceil(S / kM)) + 4 S D bytes (8 when accumulating)
#include <algorithm>

#include "csrc/cuda/device/grid.h"
#include "csrc/cuda/device/row_grid.h"
#include "csrc/cuda/loss/input_product.h"
#include "csrc/cuda/tile/loop.h"
#include "csrc/cuda/tile/tile.h"

namespace ssc::cuda {
namespace {

// A product E of A[m][k] and B[k][n], which has
//   E::Tile, E::kRows                   those of B
//   E::Arguments                        a, b, m, n, k, and where the result goes
//   store(p, first_m, first_n, tile)    the way out of a tile, or of its split of k
// is that of input_product.h, or this one: rows[m][n] (+)= Σ_k A[m][k] B[k][n], rows being n long.
template <class Tile_>
struct WeightProduct {
  using Tile = Tile_;
  using T = typename Tile::Element;
  static constexpr Rows kRows = Rows::counted;

  struct Arguments {
    RowSource<T, Rows::all> a;
    RowSource<T, kRows> b;
    int64_t m, n, k;
    typename Tile::Accumulator* rows;
    bool accumulate;
  };

  __device__ __forceinline__ static void store(const Arguments& p, int64_t first_m, int64_t first_n,
                                               Tile& tile) {
    store_tile(tile, p.rows + first_m * p.n + first_n, p.n, p.m - first_m, p.n - first_n,
               p.accumulate);
  }
};

// One hides the other's waits. With 128 registers a thread, tiles of floats would spill.
template <class Tile>
constexpr int kResidentBlocks = Tile::kTensorCores && sizeof(typename Tile::Element) == 2 ? 2 : 1;

template <class E, int kAlign>
__global__ void __launch_bounds__(kTileThreads, kResidentBlocks<typename E::Tile>)
    product_kernel(const __grid_constant__ typename E::Arguments p) {
  using Tile = typename E::Tile;
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
  OperandCopy<T, E::kRows, Tile::kB, Tile::kN, kAlign> copy_b(p.b, first_n);
  Tile tile;
  tile.clear();
  multiply_tile(tile, copy_a, copy_b, begin, end, stages);
  E::store(p, first_m, first_n, tile);
}

template <class E>
cudaError_t product(const typename E::Arguments& p, int splits, cudaStream_t stream) {
  using Tile = typename E::Tile;
  if (p.m == 0 || p.n == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.n, Tile::kN)),
                  static_cast<unsigned>(ceil_div(p.m, Tile::kM)), static_cast<unsigned>(splits));
  return with_alignment(p.a, p.b, [&](auto align) {
    constexpr int kBytes = kPipelineBytes<Tile>;
    constexpr auto kernel = product_kernel<E, decltype(align)::value>;
    const cudaError_t error = allow_shared(kernel, kBytes, 0);
    return error != cudaSuccess ? error : launch(kernel, grid, kTileThreads, kBytes, stream, p);
  });
}

// A launch has at most so many tiles of samples: a grid has no more blocks along y.
constexpr int64_t kMostTiles = 65535;

}  // namespace

template <class T>
cudaError_t input_products(const GradChunk<T>& chunk, const InputGrad<T>& out,
                           cudaStream_t stream) {
  const LossProblem<T>& p = chunk.problem;
  const RowSource<T, Rows::all> a = {chunk.probabilities, row_bytes<T>(chunk.stride), p.batch,
                                     chunk.stride};
  const RowSource<T, Rows::chosen> b = {
      p.weight, row_bytes<T>(p.weight_stride), p.samples, p.dim, p.ids, p.classes};
  const bool aligned = has_aligned_columns(p.weight, p.weight_stride) &&
                       has_aligned_columns(out.grad, out.grad_stride);
  const int64_t whole = row_columns(p.dim, aligned).whole;
  return with_tile<T, Order::along_k, Order::along_extent>(chunk.path, [&](auto tile) {
    using E = InputProduct<typename decltype(tile)::type>;
    return product<E>({a, b, p.batch, p.dim, p.samples, chunk, out, whole}, out.splits, stream);
  });
}

template <class T>
cudaError_t weight_products(const GradChunk<T>& chunk, typename GradChunk<T>::A* rows,
                            bool accumulate, cudaStream_t stream) {
  const LossProblem<T>& p = chunk.problem;
  const RowSource<T, Rows::counted> b = {
      p.input, row_bytes<T>(p.input_stride), p.batch, p.dim, p.target, p.batch, p.ignore_index};
  return with_tile<T, Order::along_extent, Order::along_extent>(chunk.path, [&](auto tile) {
    using E = WeightProduct<typename decltype(tile)::type>;
    constexpr int64_t kMost = kMostTiles * E::Tile::kM;
    cudaError_t error = cudaSuccess;
    for (int64_t first = 0; first < p.samples && error == cudaSuccess; first += kMost) {
      const RowSource<T, Rows::all> a = {chunk.probabilities + first, row_bytes<T>(chunk.stride),
                                         p.batch, chunk.stride - first};
      const int64_t samples = std::min(p.samples - first, kMost);
      error =
          product<E>({a, b, samples, p.dim, p.batch, rows + first * p.dim, accumulate}, 1, stream);
    }
    return error;
  });
}

#define SSC_PRODUCTS_INSTANCE(T)                                                               \
  template cudaError_t input_products(const GradChunk<T>&, const InputGrad<T>&, cudaStream_t); \
  template cudaError_t weight_products(const GradChunk<T>&, GradChunk<T>::A*, bool, cudaStream_t)
SSC_FOR_TYPES(SSC_PRODUCTS_INSTANCE);
#undef SSC_PRODUCTS_INSTANCE

}  // namespace ssc::cuda

// Warp collectives: shuffles, votes, matches, reductions, __syncwarp. Each is one call of
// collective(), which blocks the lane until all lanes of its mask have arrived.
#pragma once

#include <cstring>
#include <type_traits>

#include "csrc/simt/language.h"

namespace ssc::simt {

enum class Op : uint8_t {
  sync,
  shuffle,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  ballot,
  any,
  all,
  match_any,
  match_all,
  add,
  min_signed,
  min_unsigned,
  max_signed,
  max_unsigned,
  bit_and,
  bit_or,
  bit_xor,
  ldmatrix,
  mma,
};

struct Exchange {
  Op op;
  uint32_t mask;
  uint64_t value = 0;            // what the lane gives, or the address of its operands
  int32_t lane = 0, width = 32;  // of shuffles
};

uint64_t collective(const Site* site, const Exchange& exchange);
// The lanes of the calling thread's warp that exist.
uint32_t warp_lanes();

constexpr uint32_t kFullWarp = 0xffffffffu;

template <class T>
SSC_SIMT_INLINE T shuffle(const Site* site, Op op, uint32_t mask, T value, int lane,
                          int width = 32) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, static_cast<const void*>(&value), sizeof(T));
  bits = collective(site, {op, mask, bits, lane, width});
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

SSC_SIMT_INLINE void sync_warp(const Site* site, uint32_t mask) {
  collective(site, {Op::sync, mask});
}
// Without a mask: all lanes of the warp, of which a block's last warp may have fewer than 32.
SSC_SIMT_INLINE void sync_warp(const Site* site) { collective(site, {Op::sync, warp_lanes()}); }

SSC_SIMT_INLINE uint32_t vote(const Site* site, Op op, uint32_t mask, bool predicate) {
  return static_cast<uint32_t>(collective(site, {op, mask, predicate}));
}

template <class T>
SSC_SIMT_INLINE uint32_t match_any(const Site* site, uint32_t mask, T value) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return static_cast<uint32_t>(collective(site, {Op::match_any, mask, bits}));
}

template <class T>
SSC_SIMT_INLINE uint32_t match_all(const Site* site, uint32_t mask, T value, int* equal) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint32_t lanes = static_cast<uint32_t>(collective(site, {Op::match_all, mask, bits}));
  *equal = lanes != 0;
  return lanes;
}

template <class T>
SSC_SIMT_INLINE T reduce(const Site* site, Op signed_op, Op unsigned_op, uint32_t mask, T value) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  const Op op = std::is_signed_v<T> ? signed_op : unsigned_op;
  return static_cast<T>(collective(site, {op, mask, static_cast<uint32_t>(value)}));
}

SSC_SIMT_INLINE unsigned reduce_bits(const Site* site, Op op, uint32_t mask, unsigned value) {
  return static_cast<unsigned>(collective(site, {op, mask, value}));
}

}  // namespace ssc::simt

#define SSC_SIMT_SHUFFLE(op, ...) \
  ::ssc::simt::shuffle(SSC_SIMT_SITE(), ::ssc::simt::Op::op, __VA_ARGS__)
#define __shfl_sync(...) SSC_SIMT_SHUFFLE(shuffle, __VA_ARGS__)
#define __shfl_up_sync(...) SSC_SIMT_SHUFFLE(shuffle_up, __VA_ARGS__)
#define __shfl_down_sync(...) SSC_SIMT_SHUFFLE(shuffle_down, __VA_ARGS__)
#define __shfl_xor_sync(...) SSC_SIMT_SHUFFLE(shuffle_xor, __VA_ARGS__)

#define SSC_SIMT_VOTE(op, mask, predicate) \
  ::ssc::simt::vote(SSC_SIMT_SITE(), ::ssc::simt::Op::op, mask, (predicate) != 0)
#define __ballot_sync(mask, predicate) SSC_SIMT_VOTE(ballot, mask, predicate)
#define __any_sync(mask, predicate) static_cast<int>(SSC_SIMT_VOTE(any, mask, predicate))
#define __all_sync(mask, predicate) static_cast<int>(SSC_SIMT_VOTE(all, mask, predicate))

#define __match_any_sync(...) ::ssc::simt::match_any(SSC_SIMT_SITE(), __VA_ARGS__)
#define __match_all_sync(...) ::ssc::simt::match_all(SSC_SIMT_SITE(), __VA_ARGS__)

#define SSC_SIMT_REDUCE(signed_op, unsigned_op, ...)                                             \
  ::ssc::simt::reduce(SSC_SIMT_SITE(), ::ssc::simt::Op::signed_op, ::ssc::simt::Op::unsigned_op, \
                      __VA_ARGS__)
#define __reduce_add_sync(...) SSC_SIMT_REDUCE(add, add, __VA_ARGS__)
#define __reduce_min_sync(...) SSC_SIMT_REDUCE(min_signed, min_unsigned, __VA_ARGS__)
#define __reduce_max_sync(...) SSC_SIMT_REDUCE(max_signed, max_unsigned, __VA_ARGS__)
#define SSC_SIMT_REDUCE_BITS(op, ...) \
  ::ssc::simt::reduce_bits(SSC_SIMT_SITE(), ::ssc::simt::Op::op, __VA_ARGS__)
#define __reduce_and_sync(...) SSC_SIMT_REDUCE_BITS(bit_and, __VA_ARGS__)
#define __reduce_or_sync(...) SSC_SIMT_REDUCE_BITS(bit_or, __VA_ARGS__)
#define __reduce_xor_sync(...) SSC_SIMT_REDUCE_BITS(bit_xor, __VA_ARGS__)

#define __syncwarp(...) ::ssc::simt::sync_warp(SSC_SIMT_SITE() __VA_OPT__(, ) __VA_ARGS__)

// Which lanes are active together is the hardware's choice; a kernel that depends on it has no
// meaning here. Pass masks down instead.
inline unsigned __activemask() = delete;

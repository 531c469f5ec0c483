// SPDX-License-Identifier: MIT
// The tile instructions of AMX (Intel SDM volume 1, chapter 18), with a fixed use of the eight tile registers:
//
//   tmm0 .. tmm5   sums: weights w x tokens x is tmm(3 w + x), [16 weight rows][16 tokens], w < 2, x < 3
//   the others     weights: 16 rows of 64 bytes, any row stride, any alignment: rows of a tensor as they are;
//                  tokens: 16 units of 16 tokens, 1 KiB, dense (a unit is a dword of one token's row)
//
// A multiplication adds to sum[n][t] the products w[n][k] * x[k][t] of 64 bytes of K:
//
//   Dot::bf16   tdpbf16ps   32 k, fp32 sums; subnormal numbers count as zero
//   Dot::fp16   tdpfp16ps   32 k, fp32 sums; subnormal numbers count as what they are
//   Dot::int8   tdpbssd     64 k, both signed, int32 sums, exact
//   Dot::int16  tdpbssd     64 k, int8 times 16-bit numbers, exact: their high bytes are one token tile, their low bytes
//               and tdpbsud another, and so are the sums: 256 tmm(3 w) + tmm(3 w + 1)
//
// So int8 are handled like bf16 of half as many k, two in the place of one. The compiler uses no tile registers, so they
// keep their values from one statement to the next. Linux lets a process use them only after it has asked
// (runtime/cpu.py); without that the first instruction here ends the process.
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe::cpu::amx {

constexpr int kRows = 16;                  // of a tile
constexpr int kTokens = 16;                // columns of a sum tile
constexpr int kStep = 32;                  // bf16 or fp16, or pairs of int8, in a tile row
constexpr int kTileFloats = kRows * kTokens;
constexpr int kTokenTileUnits = 16 * 16;   // dwords of a token tile

// What ldtilecfg reads: palette 1, eight tiles of 16 rows of 64 bytes.
struct Shapes {
  uint8 palette = 1, start_row = 0, reserved[14] = {};
  uint16 row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8 rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Shapes) == 64, "ldtilecfg reads 64 bytes");

// Sets this thread's tile shapes. Pair: release.
inline void configure() {
#ifdef __SYCL_DEVICE_ONLY__
  const Shapes shapes;
  asm volatile("ldtilecfg (%0)" : : "r"(&shapes) : "memory");
#endif
}

// Gives the tile state back: threads that keep it pay for it at every context switch.
inline void release() {
#ifdef __SYCL_DEVICE_ONLY__
  asm volatile("tilerelease" : : : "memory");
#endif
}

// Sums of two weight tiles and num_x token tiles = 0.
template <int num_x> inline void zero_sums() {
#ifdef __SYCL_DEVICE_ONLY__
  asm volatile("tilezero %%tmm0\n\ttilezero %%tmm3" : : : "memory");
  if constexpr (num_x > 1) asm volatile("tilezero %%tmm1\n\ttilezero %%tmm4" : : : "memory");
  if constexpr (num_x > 2) asm volatile("tilezero %%tmm2\n\ttilezero %%tmm5" : : : "memory");
#endif
}

// Sums from and to sums[token tile][weight tile][16][16].
template <int num_x> inline void load_sums(const float* sums) {
#ifdef __SYCL_DEVICE_ONLY__
  constexpr int tile = 2 * kTileFloats;
  asm volatile("tileloadd (%0,%2,1), %%tmm0\n\ttileloadd (%1,%2,1), %%tmm3"
               : : "r"(sums), "r"(sums + kTileFloats), "r"(int64(64)) : "memory");
  if constexpr (num_x > 1)
    asm volatile("tileloadd (%0,%2,1), %%tmm1\n\ttileloadd (%1,%2,1), %%tmm4"
                 : : "r"(sums + tile), "r"(sums + tile + kTileFloats), "r"(int64(64)) : "memory");
  if constexpr (num_x > 2)
    asm volatile("tileloadd (%0,%2,1), %%tmm2\n\ttileloadd (%1,%2,1), %%tmm5"
                 : : "r"(sums + 2 * tile), "r"(sums + 2 * tile + kTileFloats), "r"(int64(64)) : "memory");
#else
  (void)sums;
#endif
}
template <int num_x> inline void store_sums(float* sums) {
#ifdef __SYCL_DEVICE_ONLY__
  constexpr int tile = 2 * kTileFloats;
  asm volatile("tilestored %%tmm0, (%0,%2,1)\n\ttilestored %%tmm3, (%1,%2,1)"
               : : "r"(sums), "r"(sums + kTileFloats), "r"(int64(64)) : "memory");
  if constexpr (num_x > 1)
    asm volatile("tilestored %%tmm1, (%0,%2,1)\n\ttilestored %%tmm4, (%1,%2,1)"
                 : : "r"(sums + tile), "r"(sums + tile + kTileFloats), "r"(int64(64)) : "memory");
  if constexpr (num_x > 2)
    asm volatile("tilestored %%tmm2, (%0,%2,1)\n\ttilestored %%tmm5, (%1,%2,1)"
                 : : "r"(sums + 2 * tile), "r"(sums + 2 * tile + kTileFloats), "r"(int64(64)) : "memory");
#else
  (void)sums;
#endif
}

// How tiles are multiplied: the instruction.
enum class Dot { bf16, fp16, int8, int16 };

// Two weight tiles times num_x token tiles; `dot`, or `first` and `second` for each of two, is the instruction's name. Loads
// come just before they are needed, and the token tile that comes last with the first weights is the first with the second.
#define JITMOE_TILES_1(dot)                            \
  "tileloadd (%2,%4,1), %%tmm7\n\t"                    \
  "tileloadd (%0,%3,1), %%tmm6\n\t"                    \
  dot " %%tmm7, %%tmm6, %%tmm0\n\t"                    \
  "tileloadd (%1,%3,1), %%tmm6\n\t"                    \
  dot " %%tmm7, %%tmm6, %%tmm3"
#define JITMOE_TILES_2(first, second)                  \
  "tileloadd (%2,%5,1), %%tmm5\n\t"                    \
  "tileloadd (%0,%4,1), %%tmm6\n\t"                    \
  first " %%tmm5, %%tmm6, %%tmm0\n\t"                  \
  "tileloadd (%3,%5,1), %%tmm7\n\t"                    \
  second " %%tmm7, %%tmm6, %%tmm1\n\t"                 \
  "tileloadd (%1,%4,1), %%tmm2\n\t"                    \
  first " %%tmm5, %%tmm2, %%tmm3\n\t"                  \
  second " %%tmm7, %%tmm2, %%tmm4"
#define JITMOE_TILES_3(dot)                            \
  "tileloadd (%0,%5,1), %%tmm6\n\t"                    \
  "tileloadd (%2,%6,1), %%tmm7\n\t"                    \
  dot " %%tmm7, %%tmm6, %%tmm0\n\t"                    \
  "tileloadd (%3,%6,1), %%tmm7\n\t"                    \
  dot " %%tmm7, %%tmm6, %%tmm1\n\t"                    \
  "tileloadd (%4,%6,1), %%tmm7\n\t"                    \
  dot " %%tmm7, %%tmm6, %%tmm2\n\t"                    \
  "tileloadd (%1,%5,1), %%tmm6\n\t"                    \
  dot " %%tmm7, %%tmm6, %%tmm5\n\t"                    \
  "tileloadd (%2,%6,1), %%tmm7\n\t"                    \
  dot " %%tmm7, %%tmm6, %%tmm3\n\t"                    \
  "tileloadd (%3,%6,1), %%tmm7\n\t"                    \
  dot " %%tmm7, %%tmm6, %%tmm4"

// sums += two weight tiles times num_x token tiles, 64 bytes of K. The token tiles lie x_step dwords apart.
template <Dot dot, int num_x>
inline void multiply(const uint8* w0, const uint8* w1, int64 w_stride_bytes, const uint32* x, int64 x_step) {
  static_assert(dot != Dot::int16 || num_x == 2, "high and low bytes");
#ifdef __SYCL_DEVICE_ONLY__
#define JITMOE_ONE(dot)                                                                                   \
  asm volatile(JITMOE_TILES_1(dot)                                                                        \
               : : "r"(w0), "r"(w1), "r"(x), "r"(w_stride_bytes), "r"(int64(64)) : "memory")
#define JITMOE_TWO(first, second)                                                                         \
  asm volatile(JITMOE_TILES_2(first, second)                                                              \
               : : "r"(w0), "r"(w1), "r"(x), "r"(x + x_step), "r"(w_stride_bytes), "r"(int64(64)) : "memory")
#define JITMOE_THREE(dot)                                                                                 \
  asm volatile(JITMOE_TILES_3(dot)                                                                        \
               : : "r"(w0), "r"(w1), "r"(x), "r"(x + x_step), "r"(x + 2 * x_step), "r"(w_stride_bytes),   \
                   "r"(int64(64)) : "memory")
#define JITMOE_MULTIPLY(dot)                       \
  if constexpr (num_x == 1) JITMOE_ONE(dot);       \
  else if constexpr (num_x == 2) JITMOE_TWO(dot, dot); \
  else JITMOE_THREE(dot)
  if constexpr (dot == Dot::int16) {
    JITMOE_TWO("tdpbssd", "tdpbsud");
  } else if constexpr (dot == Dot::int8) {
    JITMOE_MULTIPLY("tdpbssd");
  } else if constexpr (dot == Dot::fp16) {
    JITMOE_MULTIPLY("tdpfp16ps");
  } else {
    JITMOE_MULTIPLY("tdpbf16ps");
  }
#undef JITMOE_ONE
#undef JITMOE_TWO
#undef JITMOE_THREE
#undef JITMOE_MULTIPLY
#else
  (void)w0, (void)w1, (void)w_stride_bytes, (void)x, (void)x_step;
#endif
}

#undef JITMOE_TILES_1
#undef JITMOE_TILES_2
#undef JITMOE_TILES_3

// sums += the tiles that are still loaded: what a multiplication takes without its loads.
template <Dot dot> inline void multiply_again() {
  static_assert(dot == Dot::bf16 || dot == Dot::fp16, "nobody asks for others");
#ifdef __SYCL_DEVICE_ONLY__
#define JITMOE_AGAIN(dot)               \
  dot " %%tmm7, %%tmm6, %%tmm0\n\t"     \
  dot " %%tmm7, %%tmm6, %%tmm1\n\t"     \
  dot " %%tmm7, %%tmm6, %%tmm3\n\t"     \
  dot " %%tmm7, %%tmm6, %%tmm4"
  if constexpr (dot == Dot::fp16) asm volatile(JITMOE_AGAIN("tdpfp16ps") : : : "memory");
  else asm volatile(JITMOE_AGAIN("tdpbf16ps") : : : "memory");
#undef JITMOE_AGAIN
#endif
}

}  // namespace jitmoe::cpu::amx

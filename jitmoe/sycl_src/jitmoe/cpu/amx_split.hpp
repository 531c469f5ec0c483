// SPDX-License-Identifier: MIT
// fp16 for tiles (amx_form.hpp) of CPUs that multiply tiles of bf16 only: a number of 11 significant bits is the sum of
// two bf16,
//
//   x = high + low      high: x cut to 8 bits, low: the other 3, both exact
//
// and x w is high high + high low + low high; low low, at most 2^-16 of the product, is left out. That is three tile
// multiplications instead of one, and still several times what fp32 FMA does. Infinities become NaN (infinity times 0).
//
// Staged weights are dense tiles [step of 32 k][high, low][2][16 rows][32]; after each token tile of high units comes the
// one of low units. The next weights are asked for while these are staged: that waits for them anyway.
#pragma once

#include <jitmoe/cpu/amx_form.hpp>
#include <jitmoe/cpu/codes.hpp>

namespace jitmoe::cpu {

using SplitSimd = Simd<CpuIsa::amx_bf16, DType::fp16>;

// Whether numbers that are multiplied as `dtype` are two in token tiles.
constexpr bool splits(CpuIsa isa, DType dtype) { return isa == CpuIsa::amx_bf16 && dtype == DType::fp16; }

// Two bf16 parts of 16 floats that have 11 significant bits; the upper half of each dword.
struct SplitFloats {
  Vec<uint32, 16> high, low;

  explicit SplitFloats(Vec<float, 16> value) {
    high = bit_cast<Vec<uint32, 16>>(value) & 0xffff0000u;
    low = bit_cast<Vec<uint32, 16>>(value - bit_cast<Vec<float, 16>>(high));
  }
};

// 32 elements as bf16.
inline void split_elements(const uint16* from, Vec<uint32, 16>& high, Vec<uint32, 16>& low) {
  const SplitFloats a(load_floats<DType::fp16, 16>(from)), b(load_floats<DType::fp16, 16>(from + 16));
  high = join_floats(bit_cast<Vec<float, 16>>(a.high), bit_cast<Vec<float, 16>>(b.high));
  low = join_floats(bit_cast<Vec<float, 16>>(a.low), bit_cast<Vec<float, 16>>(b.low));
}

// Stores two units of 16 tokens that hold fp16 numbers: high of both as a pair, and low.
inline void store_split(SplitFloats a, SplitFloats b, uint32* unit) {
  store(unit, (a.high >> 16) | b.high);
  store(unit + amx::kTokenTileUnits, (a.low >> 16) | b.low);
}

// Packs units [u0, u0 + num_units), multiples of 16, of 16 tokens of k elements; `tiles` begins with unit 0.
[[gnu::noinline]] inline void pack_split(const uint16* const* tokens, int64 k, int64 u0, int64 num_units, uint32* tiles) {
  uint16 tails[amx::kTokens][amx::kStep];
  for (int64 u = u0; u < u0 + num_units; u += 16) {
    const bool whole = 2 * u + amx::kStep <= k;
    if (!whole)
      for (int t = 0; t < amx::kTokens; ++t) copy_tail(tokens[t] + 2 * u, k - 2 * u, tails[t], amx::kStep);
    Vec<uint32, 16> high[16], low[16];
#pragma unroll
    for (int t = 0; t < amx::kTokens; ++t) split_elements(whole ? tokens[t] + 2 * u : tails[t], high[t], low[t]);
    uint32* const to = tiles + high_unit(u);
    transpose<16>(high);
#pragma unroll
    for (int i = 0; i < 16; ++i) store(to + i * amx::kTokens, high[i]);
    transpose<16>(low);
#pragma unroll
    for (int i = 0; i < 16; ++i) store(to + amx::kTokenTileUnits + i * amx::kTokens, low[i]);
  }
}

// [N][K] fp16 weights.
template <> inline constexpr int parts_of<TileWeights<SplitSimd, Layout::nk>> = 2;
template <> inline constexpr int weight_parts_of<TileWeights<SplitSimd, Layout::nk>> = 2;
template <> struct TileWeights<SplitSimd, Layout::nk> {
  using Rows = WeightRows<uint16>;
  using Element = uint16;
  static constexpr bool in_place = false;
  static constexpr bool asks_while_staging = true;
  static constexpr int64 staged_k = 512;
  static constexpr int64 turn_k = kAllOfK;

  // rows_done(1) is called after each of the 32 rows.
  template <class RowsDone>
  static void stage(const Rows& w, int64 k0, int64 num_k, int64 k, uint16* staged, const RowsDone& rows_done) {
    constexpr int tile = amx::kRows * amx::kStep;
    for (int a = 0; a < 2; ++a)
      for (int n = 0; n < amx::kRows; ++n) {
        uint16* to = staged + a * tile + n * amx::kStep;
        const uint16* const row = w.first[a] + n * w.stride + k0;
        const int64 there = n < w.num_rows[a] ? k - k0 : 0;
#pragma clang loop unroll(disable)
        for (int64 i = 0; i < num_k; i += amx::kStep) {
          const uint16* from = row + i;
          uint16 tail[amx::kStep];
          if (i + amx::kStep > there) {
            copy_tail(from, there - i, tail, amx::kStep);
            from = tail;
          }
          Vec<uint32, 16> high, low;
          split_elements(from, high, low);
          store(to, high);
          store(to + 2 * tile, low);
          to += 4 * tile;
        }
        rows_done(1);
      }
  }
  static Lines lines(const Rows& w, int64 k0, int64 num_k) {
    return Lines::of_rows(w.first[0] + k0, w.first[1] + k0, 2 * num_k, 2 * w.stride, amx::kRows);
  }
};

}  // namespace jitmoe::cpu

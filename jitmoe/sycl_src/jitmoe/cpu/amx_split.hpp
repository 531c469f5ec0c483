// SPDX-License-Identifier: MIT
// Numbers that tiles of bf16 (amx_form.hpp) do not hold, cut into several bf16:
//
//   fp16   11 significant bits, two parts; for CPUs that multiply tiles of bf16 only
//   fp32   24 significant bits, three parts
//
//   x = x0 + x1 + x2    each part is what is left of x, cut to 8 bits; the last one is exact
//
// and x w is the sum of x_i w_j with i + j < parts, three or six tile multiplications instead of one, which is still several
// times what fp32 FMA does. What is left out is at most 2^-13 (fp16: low times low) or 2^-21 of a product, 2^-15 and 2^-23
// on average. Infinities become NaN (infinity minus infinity, infinity times 0); so does nothing else. Parts that bf16 has no
// normal number for are zero: of fp32 smaller than 2^-102 the last bits may be lost.
//
// Staged weights are dense tiles [step of 32 k][part][2][16 rows][32]; the token tiles of the other parts follow the first
// one. The next weights are asked for while these are staged: that waits for them anyway.
#pragma once

#include <jitmoe/cpu/amx_form.hpp>
#include <jitmoe/cpu/codes.hpp>

namespace jitmoe::cpu {

// How many bf16 a number of token tiles is that is multiplied as `dtype`; 1 if it is no bf16.
constexpr int split_parts(CpuIsa isa, DType dtype) {
  return dtype == DType::fp32 ? 3 : isa == CpuIsa::amx_bf16 && dtype == DType::fp16 ? 2 : 1;
}

// Parts of 16 floats; the upper half of each dword, of which the lower one is zero.
template <int parts> struct SplitFloats {
  Vec<uint32, 16> part[parts];

  explicit SplitFloats(Vec<float, 16> left) {
#pragma unroll
    for (int i = 0; i < parts; ++i) {
      part[i] = bit_cast<Vec<uint32, 16>>(left) & 0xffff0000u;
      left -= bit_cast<Vec<float, 16>>(part[i]);
    }
  }
};

// 32 elements as parts of bf16.
template <DType dtype, int parts>
inline void split_elements(const element_t<dtype>* from, Vec<uint32, 16> (&to)[parts]) {
  const SplitFloats<parts> a(load_floats<dtype, 16>(from)), b(load_floats<dtype, 16>(from + 16));
#pragma unroll
  for (int i = 0; i < parts; ++i)
    to[i] = join_floats(bit_cast<Vec<float, 16>>(a.part[i]), bit_cast<Vec<float, 16>>(b.part[i]));
}

// Where unit u of the pairs of K of a token tile's tokens begins, in dwords; further parts lie kTokenTileUnits apart.
template <int parts> inline int64 split_unit(int64 u) { return (u / 16 * parts * 16 + u % 16) * amx::kTokens; }

// Stores two units of 16 tokens that hold such numbers: each part of both as a pair.
template <int parts> inline void store_split(Vec<float, 16> first, Vec<float, 16> second, uint32* unit) {
  const SplitFloats<parts> a(first), b(second);
#pragma unroll
  for (int i = 0; i < parts; ++i) store(unit + i * amx::kTokenTileUnits, (a.part[i] >> 16) | b.part[i]);
}

// Packs units [u0, u0 + num_units), multiples of 16, of 16 tokens of k elements; `tiles` begins with unit 0.
template <DType dtype, int parts>
[[gnu::noinline]] void pack_split(const element_t<dtype>* const* tokens, int64 k, int64 u0, int64 num_units, uint32* tiles) {
  element_t<dtype> tails[amx::kTokens][amx::kStep];
  for (int64 u = u0; u < u0 + num_units; u += 16) {
    const bool whole = 2 * u + amx::kStep <= k;
    if (!whole)
      for (int t = 0; t < amx::kTokens; ++t) copy_tail(tokens[t] + 2 * u, k - 2 * u, tails[t], amx::kStep);
    uint32* const to = tiles + split_unit<parts>(u);
    Vec<uint32, 16> squares[parts][amx::kTokens];
#pragma unroll
    for (int t = 0; t < amx::kTokens; ++t) {
      Vec<uint32, 16> token[parts];
      split_elements<dtype, parts>(whole ? tokens[t] + 2 * u : tails[t], token);
#pragma unroll
      for (int i = 0; i < parts; ++i) squares[i][t] = token[i];
    }
#pragma unroll
    for (int i = 0; i < parts; ++i) {
      transpose<16>(squares[i]);
#pragma unroll
      for (int row = 0; row < 16; ++row) store(to + i * amx::kTokenTileUnits + row * amx::kTokens, squares[i][row]);
    }
  }
}

// [N][K] weights of two or three parts.
template <DType dtype, int parts> struct SplitWeights {
  using Element = element_t<dtype>;
  using Rows = WeightRows<Element>;
  static constexpr bool in_place = false;
  static constexpr bool asks_while_staging = true;
  static constexpr int64 staged_k = 256 * parts;
  static constexpr int64 turn_k = kAllOfK;

  // rows_done(1) is called after each of the 32 rows.
  template <class RowsDone>
  static void stage(const Rows& w, int64 k0, int64 num_k, int64 k, uint16* staged, const RowsDone& rows_done) {
    constexpr int tile = amx::kRows * amx::kStep;
    for (int a = 0; a < 2; ++a)
      for (int n = 0; n < amx::kRows; ++n) {
        uint16* to = staged + a * tile + n * amx::kStep;
        const Element* const row = w.first[a] + n * w.stride + k0;
        const int64 there = n < w.num_rows[a] ? k - k0 : 0;
#pragma clang loop unroll(disable)
        for (int64 i = 0; i < num_k; i += amx::kStep) {
          const Element* from = row + i;
          Element tail[amx::kStep];
          if (i + amx::kStep > there) {
            copy_tail(from, there - i, tail, amx::kStep);
            from = tail;
          }
          Vec<uint32, 16> split[parts];
          split_elements<dtype, parts>(from, split);
#pragma unroll
          for (int part = 0; part < parts; ++part, to += 2 * tile) store(to, split[part]);
        }
        rows_done(1);
      }
  }
  static Lines lines(const Rows& w, int64 k0, int64 num_k) {
    constexpr int64 bytes = sizeof(Element);
    return Lines::of_rows(w.first[0] + k0, w.first[1] + k0, bytes * num_k, bytes * w.stride, amx::kRows);
  }
};

template <> struct TileWeights<Simd<CpuIsa::amx_bf16, DType::fp16>, Layout::nk> : SplitWeights<DType::fp16, 2> {};
template <> inline constexpr int parts_of<TileWeights<Simd<CpuIsa::amx_bf16, DType::fp16>, Layout::nk>> = 2;
template <> struct TileWeights<Simd<CpuIsa::amx_bf16, DType::fp32>, Layout::nk> : SplitWeights<DType::fp32, 3> {};
template <> inline constexpr int parts_of<TileWeights<Simd<CpuIsa::amx_bf16, DType::fp32>, Layout::nk>> = 3;

}  // namespace jitmoe::cpu

// SPDX-License-Identifier: MIT
// Quantized weights as tiles (amx_form.hpp).
//
// Codes become bf16 in the staging buffer, once for all tokens of an expert. Scales of blocks of K multiply the codes
// there, and the product is rounded to bf16 (half away from zero; exact for E8M0 scales). Block sizes are multiples of
// 32. One scale for all of K is left to the epilogue.
//
// int8 times int8 needs no conversion: rows are read where they are, an even number of int8 of K.
#pragma once

#include <jitmoe/cpu/amx_form.hpp>
#include <jitmoe/cpu/amx_split.hpp>
#include <jitmoe/cpu/scales.hpp>

namespace jitmoe::cpu {

// Whether weights have one scale for all of K, which is the epilogue's.
template <class Config> constexpr bool scales_rows() { return Config::quantized && Config::block_k == 0; }

// Rows of codes; the stride is in bytes.
template <class B> struct CodeRows : WeightRows<uint8> {
  B blocks[2];
};

template <class Config> struct TileCodes {
  using S = Simd<CpuIsa::amx_bf16, DType::bf16>;
  using W = Codes<S, Config::encoding, Config::has_zero_point>;
  using B = Blocks<Config>;
  using Element = uint8;
  static constexpr bool in_place = false;
  static_assert(B::block_k % amx::kStep == 0, "a tile row belongs to one block");

  using Rows = CodeRows<B>;

  static int64 block_of(int64 k) {
    if constexpr (B::block_k == 0) return 0;
    else return k / B::block_k;
  }

  static void stage(const Rows& w, int64 k0, int64 num_k, int64 k, uint16* staged) {
    const int64 row_bytes = ceil_div(k * W::bits, 8);
#pragma clang loop unroll(disable)
    for (int row = 0; row < 2 * amx::kRows; ++row) {
      const int a = row / amx::kRows, n = row % amx::kRows;
      uint16* const to = staged + row * kStagedK;
      if (n >= w.num_rows[a]) {
        for (int64 i = 0; i < num_k; i += amx::kStep) store(to + i, S::units(0u));
        continue;
      }
      const uint8* const codes = w.first[a] + n * w.stride;
      float scales[kStagedK / amx::kStep];
      uint32 zeros[kStagedK / amx::kStep] = {};
      const int64 first = block_of(k0);
      if constexpr (B::block_k != 0 || B::has_zero_point)
        w.blocks[a].template read<W>(n, first, int(block_of(k0 + num_k - 1) - first) + 1, scales, zeros);
#pragma clang loop unroll(disable)
      for (int64 i = 0; i < num_k; i += amx::kStep) {
        const int64 block = block_of(k0 + i) - first;
        const int64 at = (k0 + i) * W::bits / 8;
        const uint8* from = codes + at;
        uint8 tail[W::step_bytes];
        if (at + W::step_bytes > row_bytes) {
          copy_tail(from, row_bytes - at, tail, W::step_bytes);
          from = tail;
        }
        auto pairs = W::load(from, zeros[block]);
        if constexpr (B::block_k != 0) {
          const auto even = bit_cast<S::floats>(pairs << 16) * scales[block];
          const auto odd = bit_cast<S::floats>(pairs & 0xffff0000u) * scales[block];
          pairs = ((bit_cast<S::units>(even) + 0x8000u) >> 16) | ((bit_cast<S::units>(odd) + 0x8000u) & 0xffff0000u);
        }
        store(to + i, pairs);
      }
    }
  }

  static Lines lines(const Rows& w, int64 k0, int64 num_k) {
    const int64 from = k0 * W::bits / 8;
    return Lines::of_rows(w.first[0] + from, w.first[1] + from, ceil_div(num_k * W::bits, 8), w.stride, amx::kRows);
  }
};

template <class Config> struct TileBytes : TilesInPlace {
  using S = Simd<CpuIsa::amx_bf16, DType::int8>;
  using W = Codes<S, Config::encoding, Config::has_zero_point>;
  using Rows = CodeRows<Blocks<Config>>;
  using Element = uint8;
  static_assert(Config::encoding == Encoding::int8 && Config::block_k == 0, "what tdpbssd multiplies");
};
template <class Config> inline constexpr amx::Dot dot_of<TileBytes<Config>> = amx::Dot::int8;

// The tiles of a GEMM of `Config` with weights of that layout. Inputs that were prepared are bf16 or int8.
template <class Config, Layout layout>
using TilesOf = typename Conditional<
    !Config::quantized, TileWeights<Simd<CpuIsa::amx_bf16, Config::dtype>, layout>,
    typename Conditional<Config::x_dtype == DType::int8, TileBytes<Config>, TileCodes<Config>>::type>::type;

}  // namespace jitmoe::cpu

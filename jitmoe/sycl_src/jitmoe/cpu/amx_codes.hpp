// SPDX-License-Identifier: MIT
// Quantized weights as tiles (amx_form.hpp).
//
// Codes become bf16 in the staging buffer, once for all tokens of an expert. Scales of blocks of K multiply the codes
// there, and the product is rounded to bf16 (to nearest; exact for E8M0 scales). Block sizes are multiples of 32. One
// scale for all of K is left to the epilogue. The next weights are asked for while these are staged: that takes longer
// than multiplying.
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
  using Rows = CodeRows<B>;
  using Element = uint8;
  static constexpr bool in_place = false;
  static constexpr bool asks_while_staging = true;
  static constexpr bool scales = B::block_k != 0;
  static constexpr int kTogether = 4;  // vectors in one turn of a loop: those of a block of 128
  static_assert(B::block_k % amx::kStep == 0, "a tile row belongs to one block");

  // 32 elements of a row that share a scale and a zero point, as bf16 of value * scale. 4-bit codes are looked up in a
  // table of the products.
  class Converter {
   public:
    Converter(float scale, float zero) : scale_(scale) {
      if constexpr (W::bits == 4) {
        const auto products = (four_bit_values<Config::encoding, Config::has_zero_point>() - zero) * scale;
        table_ = join_floats(products, products);
      }
      (void)zero;
    }

    S::units operator()(const uint8* from) const {
      if constexpr (W::bits == 4) return look_up(four_bit_indices(from), table_);
      const auto pairs = W::load(from, 0);
      if constexpr (!scales) return pairs;
      const auto even = bit_cast<S::floats>(pairs << 16) * scale_;
      const auto odd = bit_cast<S::floats>(pairs & 0xffff0000u) * scale_;
      return ((bit_cast<S::units>(even) + 0x8000u) >> 16) | ((bit_cast<S::units>(odd) + 0x8000u) & 0xffff0000u);
    }

   private:
    float scale_;
    S::units table_;
  };

  // row_done() is called after each of the 32 rows.
  template <class RowDone>
  static void stage(const Rows& w, int64 k0, int64 num_k, int64 k, uint16* staged, const RowDone& row_done) {
    using Floats = Codes<Simd<CpuIsa::avx512, DType::bf16>, Config::encoding, Config::has_zero_point>;
    const int64 first_byte = k0 * W::bits / 8;
    const int64 bytes_left = ceil_div(k * W::bits, 8) - first_byte;
    const int64 vectors = num_k / amx::kStep;
    const int64 whole = bytes_left / W::step_bytes < vectors ? bytes_left / W::step_bytes : vectors;
    constexpr int64 in_block = scales ? B::block_k / amx::kStep : int64(1) << 30;  // vectors
    const int64 first_block = k0 / amx::kStep / in_block;
    const int num_blocks = int((k0 / amx::kStep + vectors - 1) / in_block - first_block) + 1;
#pragma clang loop unroll(disable)
    for (int row = 0; row < 2 * amx::kRows; ++row) {
      const int a = row / amx::kRows, n = row % amx::kRows;
      uint16* const to = staged + row * kStagedK;
      if (n >= w.num_rows[a]) {
        for (int64 v = 0; v < vectors; ++v) store(to + v * amx::kStep, S::units(0u));
        row_done();
        continue;
      }
      const uint8* const codes = w.first[a] + n * w.stride + first_byte;
      float block_scales[kStagedK / amx::kStep] = {1.0f};
      uint32 zeros[kStagedK / amx::kStep] = {};
      if constexpr (scales || B::has_zero_point)
        w.blocks[a].template read<Floats>(n, first_block, num_blocks, block_scales, zeros);
      int64 v = 0;
#pragma clang loop unroll(disable)
      for (int block = 0; block < num_blocks; ++block) {
        const Converter convert(scales ? block_scales[block] : 1.0f, bit_cast<float>(zeros[block]));
        const int64 block_end = (first_block + block + 1) * in_block - k0 / amx::kStep;
        const int64 end = block_end < whole ? block_end : whole;
        if constexpr (in_block >= kTogether)
#pragma clang loop unroll(disable)
          for (; v + kTogether <= end; v += kTogether)
#pragma unroll
            for (int i = 0; i < kTogether; ++i) store(to + (v + i) * amx::kStep, convert(codes + (v + i) * W::step_bytes));
#pragma clang loop unroll(disable)
        for (; v < end; ++v) store(to + v * amx::kStep, convert(codes + v * W::step_bytes));
        if (v == whole && v < vectors && v < block_end) {  // K ends here
          uint8 tail[W::step_bytes];
          copy_tail(codes + v * W::step_bytes, bytes_left - v * W::step_bytes, tail, W::step_bytes);
          store(to + v * amx::kStep, convert(tail));
          ++v;
        }
      }
      row_done();
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

// SPDX-License-Identifier: MIT
// Quantized weights as tiles (amx_form.hpp).
//
// Codes become bf16, or fp16 where tiles multiply that, in the staging buffer, once for all tokens of an expert. Scales of
// blocks of K multiply the codes there, and the product is rounded to that (to nearest; in bf16 exact for E8M0 scales). If
// inputs are quantized too, codes stay as they are, which is exact, and the sums of blocks are scaled (amx_blocks.hpp):
// rounding makes numbers of the intermediate choose the other of two neighbouring codes. Block sizes are multiples of 32.
// One scale for all of K, on both sides, is left to the epilogue. Half of the next weights are asked for while these are
// staged, which takes about as long as multiplying: all of them there were more than memory takes at once.
//
// int8 times int8 needs no conversion: rows are read where they are, an even number of int8 of K. Nor do int8 times bf16 or
// fp16, which become 16-bit fixed-point numbers first (cpu/round_input.hpp), with a scale for each block of K: a block's sums
// are exact, and then they are scaled.
#pragma once

#include <jitmoe/cpu/amx_form.hpp>
#include <jitmoe/cpu/amx_split.hpp>
#include <jitmoe/cpu/scaled_codes.hpp>
#include <jitmoe/cpu/scales.hpp>

namespace jitmoe::cpu {

// Whether weights have one scale for all of K, which is the epilogue's.
template <class Config> constexpr bool scales_rows() { return Config::quantized && Config::block_k == 0; }

// Whether the sums of blocks of K are scaled, by the scales of both sides.
template <class Config> constexpr bool scales_sums() { return Config::x_scaled && Config::block_k != 0; }

// Whether int8 are multiplied with 16-bit fixed-point numbers.
template <class Config> constexpr bool has_fixed_point() { return Config::x_dtype == DType::int16; }

// Whether an element of K (amx_form.hpp) is two codes.
template <class Config> constexpr bool elements_are_pairs() {
  return has_fixed_point<Config>() || Config::x_dtype == DType::int8;
}

// Rows of codes; the stride is in bytes.
template <class B> struct CodeRows : WeightRows<uint8> {
  B blocks[2];

  // See sum_block_of. Scales of blocks first .. first + count - 1: to[block][row], 0 for rows that do not exist. Those of the
  // next 32 rows are asked for.
  void read_scales(int64 first, int count, float (*to)[2 * amx::kRows]) const {
    const bool is_dense = blocks[1].weights.row == blocks[0].weights.row + amx::kRows;
    const int64 ahead = (is_dense ? 2 : 1) * amx::kRows;
    for (int a = 0; a < 2; ++a) {
      const int num_rows = this->num_rows[a];
      const int num_read = num_rows == amx::kRows && blocks[a].is_shared_by(amx::kRows) ? 1 : num_rows;
#pragma clang loop unroll(disable)
      for (int b = 0; b < count; b += 16) {
        const int there = count - b < 16 ? count - b : 16;
        Vec<uint32, 16> scales[amx::kRows] = {};
#pragma clang loop unroll(disable)
        for (int n = 0; n < num_read; ++n) {
          scales[n] = bit_cast<Vec<uint32, 16>>(typename B::Row(blocks[a], n).scales(first + b, there));
          prefetch(typename B::Row(blocks[a], n + ahead).scale_at(first + b));
        }
        for (int n = num_read; n < num_rows; ++n) scales[n] = scales[0];
        transpose<16>(scales);
#pragma clang loop unroll(disable)
        for (int i = 0; i < there; ++i) store(to[b + i] + a * amx::kRows, scales[i]);
      }
    }
  }
};

template <class Config> struct TileCodes {
  using S = Simd<Config::isa, Config::x_dtype>;
  using W = Codes<S, Config::encoding, Config::has_zero_point>;
  using B = BlocksOf<Config>;
  using Rows = CodeRows<B>;
  using Element = uint8;
  static constexpr bool in_place = false;
  static constexpr bool asks_while_staging = true;
  static constexpr int64 staged_k = 1024;  // shorter pieces cost more than reading them from L2
  static constexpr int64 turn_k = kAllOfK;
  static constexpr bool scales = B::block_k != 0 && !scales_sums<Config>();  // else sums are scaled
  static constexpr int kTogether = 4;  // vectors in one turn of a loop: those of a block of 128
  static constexpr int kBlockVectors = scales ? B::block_k / amx::kStep : 1 << 30;
  static constexpr int kScaleVectors = int(ceil_div(ceil_div(staged_k / amx::kStep, kBlockVectors), 16));
  using C = Converters<W, Config::encoding, Config::has_zero_point, Config::scale_dtype>;
  using Floats = Codes<Simd<CpuIsa::avx512, DType::bf16>, Config::encoding, Config::has_zero_point>;
  static_assert(B::block_k % amx::kStep == 0, "a tile row belongs to one block");
  static_assert(S::dtype == DType::bf16 || !scales || (Config::scale_dtype == DType::fp16 && !C::is_fp8 &&
                                                       Config::encoding != Encoding::e2m1),
                "what fp16 holds, see scaled_codes.hpp");
  static_assert(!(scales_sums<Config>() && B::has_zero_point), "zero points of blocks belong to their scales");

  // Converts kTogether vectors, each `vectors` of them by the next of `converters`.
  template <int vectors, class Convert>
  static void convert_together(const uint8* codes, uint16* to, const Convert* converters) {
    using Bits = typename Convert::Bits;
    if constexpr (!__is_same(Bits, NoBits)) {
      typename S::units pairs[kTogether];
      if (Bits::to_bf16_in_order(codes, pairs)) [[likely]] {
#pragma unroll
        for (int i = 0; i < kTogether; ++i) store(to + i * amx::kStep, converters[i / vectors].scaled(pairs[i]));
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) store(to + i * amx::kStep, converters[i / vectors](codes + i * W::step_bytes));
  }

  // Part of a row of codes: whole vectors of it, then perhaps one that K ends in.
  struct Part {
    int64 bytes_left;   // of a row
    int64 vectors;      // to write
    int64 whole;        // of them
    int64 first_block;  // its block begins before or where the part does
    int64 first_vector; // of K

    // Converts `codes`, a row of the part, from vector v to the end of block `block`, and returns where that is.
    template <class Convert>
    int64 convert_block(const uint8* codes, int64 v, int block, const Convert& convert, uint16* to) const {
      const int64 block_end = (first_block + block + 1) * kBlockVectors - first_vector;
      const int64 end = block_end < whole ? block_end : whole;
#pragma clang loop unroll(disable)
      for (; v + kTogether <= end; v += kTogether)
        convert_together<kTogether>(codes + v * W::step_bytes, to + v * amx::kStep, &convert);
#pragma clang loop unroll(disable)
      for (; v < end; ++v) store(to + v * amx::kStep, convert(codes + v * W::step_bytes));
      if (v == whole && v < vectors && v < block_end) {
        uint8 tail[W::step_bytes];
        copy_tail(codes + v * W::step_bytes, bytes_left - v * W::step_bytes, tail, W::step_bytes);
        store(to + v * amx::kStep, convert(tail));
        ++v;
      }
      return v;
    }
  };

  // One row, with a scale and a zero point for each of its blocks.
  template <class Convert>
  [[gnu::noinline]] static void convert_row(const Part& part, const uint8* codes, const float* scales, const float* zeros,
                                            uint16* to) {
    int64 v = 0;
    int block = 0;
    if constexpr (kBlockVectors == 1 || kBlockVectors == 2)  // parts begin with a block
#pragma clang loop unroll(disable)
      for (; v + kTogether <= part.whole; v += kTogether, block += kTogether / kBlockVectors) {
        const auto convert = [&](int i) { return Convert(scales[block + i], zeros[block + i]); };
        const auto use = [&](const auto&... converters) {
          const Convert all[] = {converters...};
          convert_together<kBlockVectors>(codes + v * W::step_bytes, to + v * amx::kStep, all);
        };
        if constexpr (kBlockVectors == 1) use(convert(0), convert(1), convert(2), convert(3));
        else use(convert(0), convert(1));
      }
#pragma clang loop unroll(disable)
    for (; v < part.vectors; ++block) v = part.convert_block(codes, v, block, Convert(scales[block], zeros[block]), to);
  }

  // Rows that share scales: what is made of a scale serves all of them. rows_done as in stage.
  template <class Convert, class RowsDone>
  [[gnu::noinline]] static void convert_rows(const Part& part, const uint8* codes, int64 stride, const float* scales,
                                             const float* zeros, int num_blocks, uint16* to, const RowsDone& rows_done) {
    int64 v = 0;
    for (int block = 0; block < num_blocks; ++block) {
      const Convert convert(scales[block], zeros[block]);
      int64 end = v;
#pragma clang loop unroll(disable)
      for (int n = 0; n < amx::kRows; ++n)
        end = part.convert_block(codes + n * stride, v, block, convert, to + n * staged_k);
      v = end;
      rows_done(amx::kRows * (block + 1) / num_blocks - amx::kRows * block / num_blocks);
    }
  }

  // rows_done(n) is called after n rows' work, for all of the 32 rows.
  template <class RowsDone>
  static void stage(const Rows& w, int64 k0, int64 num_k, int64 k, uint16* staged, const RowsDone& rows_done) {
    Part part;
    const int64 first_byte = k0 * W::bits / 8;
    part.bytes_left = ceil_div(k * W::bits, 8) - first_byte;
    part.vectors = num_k / amx::kStep;
    part.whole = part.bytes_left / W::step_bytes < part.vectors ? part.bytes_left / W::step_bytes : part.vectors;
    part.first_vector = k0 / amx::kStep;
    part.first_block = part.first_vector / kBlockVectors;
    const int num_blocks = int((part.first_vector + part.vectors - 1) / kBlockVectors - part.first_block) + 1;
#pragma clang loop unroll(disable)
    for (int row = 0; row < 2 * amx::kRows;) {
      const int a = row / amx::kRows, n = row % amx::kRows;
      uint16* const to = staged + row * staged_k;
      if (n >= w.num_rows[a]) {
        for (int64 v = 0; v < part.vectors; ++v) store(to + v * amx::kStep, typename S::units(0u));
        rows_done(1);
        ++row;
        continue;
      }
      const uint8* const codes = w.first[a] + n * w.stride + first_byte;
      typename S::floats block_scales[kScaleVectors];
#pragma unroll
      for (auto& vector : block_scales) vector = typename S::floats(1.0f);
      uint32 zeros[16 * kScaleVectors] = {};
      auto* const scales_at = reinterpret_cast<float*>(block_scales);
      const auto* const zeros_at = reinterpret_cast<const float*>(zeros);
      if constexpr (scales || B::has_zero_point)
        w.blocks[a].template read<Floats>(n, part.first_block, num_blocks, scales_at, zeros);
      if constexpr (!scales) {
        block_scales[0] = typename S::floats(1.0f);
        convert_row<typename C::Whole>(part, codes, scales_at, zeros_at, to);
      } else if (are_ordinary(block_scales)) {
        using Convert = typename C::Ordinary;
        if constexpr (C::adds_powers)
#pragma unroll
          for (auto& vector : block_scales) vector = bit_cast<typename S::floats>(exponent_words<16>(vector));
        if (n == 0 && w.num_rows[a] == amx::kRows && w.blocks[a].is_shared_by(amx::kRows)) {
          convert_rows<Convert>(part, codes, w.stride, scales_at, zeros_at, num_blocks, to, rows_done);
          row += amx::kRows;
          continue;
        }
        convert_row<Convert>(part, codes, scales_at, zeros_at, to);
      } else {
        convert_row<typename C::Any>(part, codes, scales_at, zeros_at, to);
      }
      rows_done(1);
      ++row;
    }
  }

  static Lines lines(const Rows& w, int64 k0, int64 num_k) {
    const int64 from = k0 * W::bits / 8;
    return Lines::of_rows(w.first[0] + from, w.first[1] + from, ceil_div(num_k * W::bits, 8), w.stride, amx::kRows);
  }
};

template <class Config>
inline constexpr amx::Dot dot_of<TileCodes<Config>> = Config::x_dtype == DType::fp16 ? amx::Dot::fp16 : amx::Dot::bf16;
template <class Config> inline constexpr int64 sum_block_of<TileCodes<Config>> = scales_sums<Config>() ? Config::block_k : 0;

template <class Config> struct TileBytes : TilesInPlace {
  using S = Simd<CpuIsa::amx_bf16, DType::int8>;
  using W = Codes<S, Config::encoding, Config::has_zero_point>;
  using Rows = CodeRows<BlocksOf<Config>>;
  using Element = uint8;
  static_assert(Config::encoding == Encoding::int8, "what tdpbssd and tdpbsud multiply");
  static_assert(Config::block_k == 0 || has_fixed_point<Config>(), "sums of int8 are scaled by the epilogue");
};

template <class Config>
inline constexpr amx::Dot dot_of<TileBytes<Config>> = has_fixed_point<Config>() ? amx::Dot::int16 : amx::Dot::int8;
template <class Config> inline constexpr int parts_of<TileBytes<Config>> = has_fixed_point<Config>() ? 2 : 1;
template <class Config>
inline constexpr int64 sum_block_of<TileBytes<Config>> = has_fixed_point<Config>() ? Config::block_k / 2 : 0;

// The tiles of a GEMM of `Config` with weights of that layout. Inputs that were prepared are bf16, int8 or int16.
template <class Config, Layout layout>
using TilesOf = typename Conditional<
    !Config::quantized, TileWeights<Simd<Config::isa, Config::dtype>, layout>,
    typename Conditional<elements_are_pairs<Config>(), TileBytes<Config>, TileCodes<Config>>::type>::type;

}  // namespace jitmoe::cpu

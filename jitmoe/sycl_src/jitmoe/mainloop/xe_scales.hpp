// SPDX-License-Identifier: MIT
// Scales of quantized operands, applied to fp32 accumulators.
//
// One scale over the whole K multiplies the sum at the end. With a scale per block of K, accumulators hold sums in units
// of the current block's scale: where a block ends they are multiplied by (old scale / new scale). That costs one
// multiplication per accumulator register and block and no second set of accumulators. It needs scales that can be
// divided by: one that is smaller than 2^-64 of the largest before it (or 0) is replaced by that, so what its block
// adds is off by at most 2^-64 of what a block with the largest scale may add. NaN scales give NaN.
//
// W scales: one per block of block_n rows of the stored matrix and block_k of K. X scales: one per packed row, or one
// per row and x_block_k of K (kernel/xe_quantize.hpp).
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/arch/scale.hpp>
#include <jitmoe/mainloop/xe_operands.hpp>

namespace jitmoe::mainloop {

using arch::f32x8;

// What the kernels know of the quantized operands of one GEMM; strides in elements.
struct Quant {
  const void* scale;        // [E][blocks of rows][blocks of K], Config::scale_dtype
  const void* zero_point;   // the same, one byte each
  const float* x_scale;     // [rows][x_blocks], of the row block
  int64 scale_expert_stride, scale_n_stride, scale_k_stride;
  int64 zero_expert_stride, zero_n_stride, zero_k_stride;
  int32 block_n;            // rows of the stored matrix per scale; 0: all
  int32 x_blocks;           // x scales per row
};

// From kernel arguments, which name these alike.
template <class Args> inline Quant quant_of(const Args& args) {
  return {args.w_scale,
          args.w_zero_point,
          static_cast<const float*>(args.x_scale),
          args.scale_expert_stride,
          args.scale_n_stride,
          args.scale_k_stride,
          args.zero_expert_stride,
          args.zero_n_stride,
          args.zero_k_stride,
          args.block_n,
          args.x_blocks};
}

// GPUs have an instruction with all bits right but the last; that of CPUs is right to 12 bits, too few after many blocks.
template <bool emulated> inline float reciprocal(float x) {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) return __spirv_ocl_native_recip(x);
#endif
  return 1.0f / x;
}

// The scale of consecutive blocks, in one lane.
struct RunningScale {
  float value, least;

  void begin(float scale) {
    least = 1.17549435e-38f;
    value = usable(scale);
  }
  // Returns what accumulators are multiplied by when the block of `scale` begins.
  template <bool emulated> float next(float scale) {
    const float old = value;
    value = usable(scale);
    return old * reciprocal<emulated>(value);
  }

 private:
  float usable(float scale) {
    const float magnitude = scale < 0.0f ? -scale : scale;
    const float used = magnitude < least ? least : scale;
    const float share = magnitude * 5.421010862427522e-20f;  // 2^-64
    least = share > least ? share : least;
    return used;
  }
};

constexpr int32 greatest_common_divisor(int32 a, int32 b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

// Scales may change at multiples of this many k; 0: there is one of W and one of X for all of K.
template <class Config>
constexpr int32 kScaleBlock = greatest_common_divisor(Config::block_k, Config::x_block_k);

// The scales and zero points of an expert at a tile's columns and tokens.
template <class Config> struct TileScales {
  const Weights& w;
  const Quant& quant;
  int64 scale_base, zero_base;

  TileScales(const Weights& weights, const Quant& scales, int32 expert)
      : w(weights),
        quant(scales),
        scale_base(expert * scales.scale_expert_stride),
        zero_base(expert * scales.zero_expert_stride) {}

  // Block of rows that column n of block q has its scale in; columns past the end have the last one's.
  int32 block_row(int32 q, int32 n) const {
    const int32 row = (n < w.columns ? n : w.columns - 1) * w.row_step + w.first_row[q];
    return quant.block_n == 0 ? 0 : row / quant.block_n;
  }
  static int32 block_of_k(int32 k, int32 size) { return size == 0 ? 0 : k / size; }

  float scale(int32 block_row, int32 k) const {
    const int32 block = block_of_k(k, Config::block_k);
    return arch::read_float<Config::scale_dtype>(
        quant.scale, scale_base + block_row * quant.scale_n_stride + block * quant.scale_k_stride);
  }
  uint8 zero_point(int32 block_row, int32 k) const {
    if constexpr (!Config::has_zero_point) return 8;
    const int32 block = block_of_k(k, Config::block_k);
    return static_cast<const uint8*>(
        quant.zero_point)[zero_base + block_row * quant.zero_n_stride + block * quant.zero_k_stride];
  }
  float x_scale(int32 row, int32 k) const {
    return quant.x_scale[int64(row) * quant.x_blocks + block_of_k(k, Config::x_block_k)];
  }
};

// Accumulators whose lanes are tokens: acc[q][j][i] element m = column 8j + m, lane n = token S*i + n. A factor of S
// columns belongs to two of them.
template <class Config> struct TokenLanes : TokenLaneTile<Config> {
  using Tile = TokenLaneTile<Config>;
  using Tile::kColumnBlocks, Tile::kTokenBlocks, Tile::kUnroll, Tile::index;
  static_assert(Config::simd == 16, "two blocks of 8 columns per vector of factors");

  // Lane n of `factor`: of column S*v + n.
  static void multiply_columns(f32x8 (&acc)[Tile::kAccumulators], int32 q, int32 v, float factor) {
    _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i) {
      f32x8 &low = acc[index(q, 2 * v, i)], &high = acc[index(q, 2 * v + 1, i)];
      low = arch::scale_elements<Config::emulated, false>(low, factor);
      high = arch::scale_elements<Config::emulated, true>(high, factor);
    }
  }
  // Lane n of `factor`: of token S*i + n.
  static void multiply_tokens(f32x8 (&acc)[Tile::kAccumulators], int32 i, float factor) {
    _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q)
      _Pragma("unroll(kUnroll)") for (int32 j = 0; j < kColumnBlocks; ++j) {
        f32x8& sum = acc[index(q, j, i)];
        sum = arch::scale_lanes<Config::emulated>(sum, factor);
      }
  }
};

// Accumulators whose lanes are columns: acc[q][j][i] element m = token S*i + m, lane n = column S*j + n, S = 8.
template <class Config> struct ColumnLanes : ColumnLaneTile<Config> {
  using Tile = ColumnLaneTile<Config>;
  using Tile::kColumnBlocks, Tile::kTokenBlocks, Tile::kUnroll, Tile::index;
  static_assert(Config::simd == 8, "a lane per token of a block");

  static void multiply_columns(f32x8 (&acc)[Tile::kAccumulators], int32 q, int32 j, float factor) {
    _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i) acc[index(q, j, i)] *= factor;
  }
  static void multiply_tokens(f32x8 (&acc)[Tile::kAccumulators], int32 i, float factor) {
    f32x8 tokens;
    _Pragma("unroll") for (int32 m = 0; m < 8; ++m) tokens[m] = arch::shuffle(factor, m);
    _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q)
      _Pragma("unroll(kUnroll)") for (int32 j = 0; j < kColumnBlocks; ++j) acc[index(q, j, i)] *= tokens;
  }
};

// The running scales of a tile. Lane n keeps those of columns S*v + n and of tokens S*i + n; Lanes says what they mean
// to the accumulators.
template <class Config, class Lanes> struct LaneScales {
  static constexpr int32 kSimd = Config::simd;
  static constexpr int32 kVectors = Config::tile_columns / kSimd, kTokenBlocks = Lanes::kTokenBlocks;
  static constexpr int32 kUnroll = Lanes::kUnroll;
  using Accumulators = f32x8[Lanes::kAccumulators];

  TileScales<Config> all;
  RunningScale w_scale[2][kVectors], x_scale[kTokenBlocks];
  uint8 zero[2][kVectors];
  int32 block_row[2][kVectors], row[kTokenBlocks];

  LaneScales(const Weights& w, const Tokens& x, const Quant& quant, int32 expert, int32 k) : all(w, quant, expert) {
    _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q)
      _Pragma("unroll(kUnroll)") for (int32 v = 0; v < kVectors; ++v) {
        block_row[q][v] = all.block_row(q, w.column[q] + kSimd * v + arch::lane_id());
        w_scale[q][v].begin(all.scale(block_row[q][v], k));
        zero[q][v] = all.zero_point(block_row[q][v], k);
      }
    _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i) {
      const int32 m = x.first + i * kSimd + arch::lane_id();
      row[i] = m < x.count ? m : x.count - 1;
      x_scale[i].begin(all.x_scale(row[i], k));
    }
  }

  // A block that k begins: new zero points, accumulators in units of its scales.
  void next(Accumulators& acc, int32 k) {
    if constexpr (Config::block_k != 0) {
      if (Config::block_k == kScaleBlock<Config> || k % Config::block_k == 0) {
        _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q)
          _Pragma("unroll(kUnroll)") for (int32 v = 0; v < kVectors; ++v) {
            const float scale = all.scale(block_row[q][v], k);
            Lanes::multiply_columns(acc, q, v, w_scale[q][v].template next<Config::emulated>(scale));
            zero[q][v] = all.zero_point(block_row[q][v], k);
          }
      }
    }
    if constexpr (Config::x_block_k != 0) {
      _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i)
        Lanes::multiply_tokens(acc, i, x_scale[i].template next<Config::emulated>(all.x_scale(row[i], k)));
    }
  }

  void finish(Accumulators& acc) const {
    _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q)
      _Pragma("unroll(kUnroll)") for (int32 v = 0; v < kVectors; ++v)
        Lanes::multiply_columns(acc, q, v, w_scale[q][v].value);
    _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i)
      Lanes::multiply_tokens(acc, i, x_scale[i].value);
  }
};

template <class Config> using TokenLaneScales = LaneScales<Config, TokenLanes<Config>>;
template <class Config> using ColumnLaneScales = LaneScales<Config, ColumnLanes<Config>>;

// acc = sums times their scales. Conversion takes the sums apart anyway, so each element is multiplied alone.
template <class Config, int32 count>
inline void convert(const TokenLaneScales<Config>& scales, const arch::i32x8 (&sums)[count], f32x8 (&acc)[count]) {
  using Lanes = TokenLanes<Config>;
  _Pragma("unroll(Lanes::kUnroll)") for (int32 q = 0; q < 2; ++q)
    _Pragma("unroll(Lanes::kUnroll)") for (int32 j = 0; j < Lanes::kColumnBlocks; ++j)
      _Pragma("unroll(Lanes::kUnroll)") for (int32 i = 0; i < Lanes::kTokenBlocks; ++i) {
        const int32 at = Lanes::index(q, j, i);
        _Pragma("unroll") for (int32 m = 0; m < 8; ++m)
          acc[at][m] = float(sums[at][m]) * scales.x_scale[i].value *
                       arch::shuffle(scales.w_scale[q][j / 2].value, j % 2 * 8 + m);
      }
}

}  // namespace jitmoe::mainloop

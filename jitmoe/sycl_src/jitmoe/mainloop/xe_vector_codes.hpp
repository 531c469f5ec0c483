// SPDX-License-Identifier: MIT
// mainloop/xe_vector.hpp for quantized weights [N][K]: any block size, any size and stride.
//
//   acc[q][m] = sum over blocks of (sum over k in the block of x[m][k] * value(code[column[q]][k])) * scale
//
// x are packed fp32 rows with scales of their own (kernel/xe_quantize.hpp). Numerics: fp32, ascending k; the codes' values
// are exact.
#pragma once

#include <jitmoe/arch/codes.hpp>
#include <jitmoe/mainloop/xe_scales.hpp>
#include <jitmoe/mainloop/xe_vector.hpp>

namespace jitmoe::mainloop {

template <class Config> struct XeVectorCodes {
  static constexpr int32 kRows = Config::tile_rows;
  static constexpr bool kNibbles = arch::is_4_bit(Config::encoding);

  static float value(const uint8* row, int32 k, uint8 zero) {
    const uint8 byte = row[kNibbles ? k / 2 : k];
    return fp16_to_float(arch::decode<Config::encoding>(byte, k % 2 == 1, zero));
  }

  // column[q]: the lane's rows of the expert's matrix; row[m]: packed rows, their elements at rows[m].
  static void run(float (&acc)[2][kRows], const Weights& w, const Quant& quant, int32 expert,
                  const int32 (&column)[2], const float* const (&rows)[kRows], const int32 (&row)[kRows]) {
    const TileScales<Config> scales(w, quant, expert);
    const int32 block = kScaleBlock<Config> == 0 ? w.k : kScaleBlock<Config>;
    const int32 block_row[2] = {scales.block_row(0, column[0]), scales.block_row(1, column[1])};
    const uint8* codes[2];
    _Pragma("unroll") for (int32 q = 0; q < 2; ++q)
      codes[q] = reinterpret_cast<const uint8*>(w.matrix[q]) + column[q] * w.stride;
    for (int32 begin = 0; begin < w.k; begin += block) {
      const int32 end = begin + block < w.k ? begin + block : w.k;
      const uint8 zero[2] = {scales.zero_point(block_row[0], begin), scales.zero_point(block_row[1], begin)};
      float sum[2][kRows] = {};
      for (int32 k = begin; k < end; ++k) {
        const float w0 = value(codes[0], k, zero[0]), w1 = value(codes[1], k, zero[1]);
        _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) {
          sum[0][m] += rows[m][k] * w0;
          sum[1][m] += rows[m][k] * w1;
        }
      }
      const float scale0 = scales.scale(block_row[0], begin), scale1 = scales.scale(block_row[1], begin);
      _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) {
        const float x_scale = scales.x_scale(row[m], begin);
        acc[0][m] += sum[0][m] * (scale0 * x_scale);
        acc[1][m] += sum[1][m] * (scale1 * x_scale);
      }
    }
  }
};

// Either loop, as the vector kernels call it. column[q]: row of tensor[q] (nk) or column of it (kn), one that exists.
template <class Config> struct VectorOperands {
  const void* tensor[2];  // [E] matrices
  int64 w_expert_stride, w_stride;
  int32 columns;          // rows of one matrix
  int32 k;
  Quant quant;            // x_scale: of row 0
};

template <class Config>
inline void run_vector(float (&acc)[2][Config::tile_rows], const VectorOperands<Config>& operands, int32 expert,
                       const int32 (&column)[2], const void* x, int64 x_stride,
                       const int32 (&x_row)[Config::tile_rows]) {
  constexpr int32 kRows = Config::tile_rows;
  if constexpr (Quantized<Config>) {
    Weights w{};
    const float* rows[kRows];
    _Pragma("unroll") for (int32 q = 0; q < 2; ++q)
      w.matrix[q] = reinterpret_cast<const uint16*>(static_cast<const uint8*>(operands.tensor[q]) +
                                                    expert * operands.w_expert_stride);
    w.stride = operands.w_stride;
    w.columns = operands.columns;
    w.k = operands.k;
    _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) rows[m] = static_cast<const float*>(x) + x_row[m] * x_stride;
    XeVectorCodes<Config>::run(acc, w, operands.quant, expert, column, rows, x_row);
  } else {
    using MainLoop = XeVector<Config>;
    using Element = typename MainLoop::Element;
    const Element* w[2];
    const Element* rows[kRows];
    _Pragma("unroll") for (int32 q = 0; q < 2; ++q)
      w[q] = MainLoop::column(static_cast<const Element*>(operands.tensor[q]) + expert * operands.w_expert_stride,
                              column[q], operands.w_stride);
    _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) rows[m] = static_cast<const Element*>(x) + x_row[m] * x_stride;
    MainLoop::run(acc, w, operands.w_stride, rows, operands.k);
  }
}

}  // namespace jitmoe::mainloop

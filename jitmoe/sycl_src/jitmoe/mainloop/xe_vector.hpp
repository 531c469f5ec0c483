// SPDX-License-Identifier: MIT
// Grouped GEMM without dpas, for GPUs that lack it and for fp32: one work-item per column pair, plain multiply-adds.
//
//   acc[q][m] = sum over k of x[m][k] * W[column[q]][k], lane = column; the token rows are the same for all lanes
//
// Weights are read once per row block of tile_rows tokens. nk: each lane walks its own row, 16 B at a time if `wide`;
// kn: the lanes of a sub-group read neighbouring columns. Any stride, any size, bf16, fp16 and fp32.
// nd_range: grid x (sub_groups * S) work-items; work-group tile = one row block x sub_groups * S column pairs. No SLM.
// Numerics: fp32 accumulation in ascending k.
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/scheduler/block_walk.hpp>

namespace jitmoe::mainloop {

template <class Config> struct XeVector {
  static constexpr int32 kRows = Config::tile_rows;
  static constexpr int32 kWide = 16 / num_bytes(Config::dtype);  // elements of a 16 B load
  using Element = element_t<Config::dtype>;

  static float value(Element element) { return to_float<Config::dtype>(element); }

  struct Wide { float values[kWide]; };
  static Wide load_wide(const Element* from) {
    typedef uint32 unaligned_u32x4 __attribute__((vector_size(16), aligned(4)));
    const auto dwords = *reinterpret_cast<const unaligned_u32x4*>(from);
    Wide out;
    _Pragma("unroll") for (int32 i = 0; i < kWide; ++i) {
      if constexpr (Config::dtype == DType::fp32) out.values[i] = bit_cast<float>(uint32(dwords[i]));
      else out.values[i] = value(Element(dwords[i / 2] >> (i % 2 * 16)));
    }
    return out;
  }

  // First element of column n of one expert's matrix.
  static const Element* column(const Element* matrix, int32 n, int64 w_stride) {
    return matrix + (Config::layout == Layout::nk ? n * w_stride : n);
  }

  // w[q]: column q of the lane's pair, clamped by the caller to one that exists; rows[m] repeats the last row past the
  // count.
  static void run(float (&acc)[2][kRows], const Element* const (&w)[2], int64 w_stride,
                  const Element* const (&rows)[kRows], int32 k_end) {
    int32 k = 0;
    if constexpr (Config::wide) {
      static_assert(Config::layout == Layout::nk, "wide loads run along a contiguous K");
      for (; k + kWide <= k_end; k += kWide) {
        const Wide w0 = load_wide(w[0] + k), w1 = load_wide(w[1] + k);
        _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) {
          const Wide x = load_wide(rows[m] + k);
          _Pragma("unroll") for (int32 i = 0; i < kWide; ++i) {
            acc[0][m] += x.values[i] * w0.values[i];
            acc[1][m] += x.values[i] * w1.values[i];
          }
        }
      }
    }
    for (; k < k_end; ++k) {
      const int64 at = Config::layout == Layout::nk ? k : k * w_stride;
      const float w0 = value(w[0][at]), w1 = value(w[1][at]);
      _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) {
        const float x = value(rows[m][k]);
        acc[0][m] += x * w0;
        acc[1][m] += x * w1;
      }
    }
  }
};

}  // namespace jitmoe::mainloop

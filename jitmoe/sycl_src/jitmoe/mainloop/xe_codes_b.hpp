// SPDX-License-Identifier: MIT
// Main loop of quantized weights [N][K] as the B operand of fp16 dpas, at sub-group size 8 (dg2): xe_weights_b.hpp with codes
// that are converted in registers, and scales (xe_scales.hpp).
//
//   acc[q][j][i] element m, lane n = sum over k of x[first + 8i + m][k] * W(column[q] + 8j + n, k), W = code * scale
//
// Each lane reads 32 bytes of its own column's row per step: 32 k of 8-bit codes, 64 k of 4-bit codes (XeWeights::row), or
// the same by masked byte loads. Tokens are packed fp16 rows in the order of xe_codes_a.hpp, one message per row and 32 k.
#pragma once

#include <jitmoe/arch/block1d.hpp>
#include <jitmoe/arch/codes.hpp>
#include <jitmoe/arch/dpas.hpp>
#include <jitmoe/mainloop/xe_operands.hpp>
#include <jitmoe/mainloop/xe_scales.hpp>

namespace jitmoe::mainloop {

using arch::f32x8;
using arch::u32x8;

template <class Config> struct XeCodesB : ColumnLaneTile<Config> {
  using Tile = ColumnLaneTile<Config>;
  using Tile::kColumnBlocks, Tile::kTokenBlocks, Tile::kAccumulators, Tile::kUnroll, Tile::index;
  using Accumulator = f32x8;
  static constexpr int32 kSimd = Config::simd;
  static constexpr bool kEmulated = Config::emulated;
  static constexpr bool kNibbles = arch::is_4_bit(Config::encoding);
  static constexpr int32 kChunks = kNibbles ? 2 : 1;
  static constexpr int32 kStep = 32 * kChunks;
  static constexpr int32 kBlock = kScaleBlock<Config>;
  using A = arch::dpas_a_t<kSimd>;
  static_assert(kSimd == 8 && Config::layout == Layout::nk && Config::tokens == XeTokens::packed);
  static_assert(Config::weights != XeWeights::block2d && !Config::split_barrier);
  static_assert(kBlock % kStep == 0 || kBlock == 32, "scale blocks: whole chunks");

  static int32 code_bytes(int32 k) { return kNibbles ? (k + 1) / 2 : k; }

  // 32 bytes of the lane's row: bytes past the end are 0.
  static u32x8 load(const Weights& w, int32 q, int32 column, int32 k) {
    const int32 n = column + arch::lane_id() < w.columns ? column + arch::lane_id() : w.columns - 1;
    const auto* row = reinterpret_cast<const uint8*>(w.matrix[q]) + n * w.stride + w.first_k[q];
    const int32 first = code_bytes(k);
    if constexpr (Config::weights == XeWeights::row) return arch::read_lane(row + first);
    const int32 width = code_bytes(w.k);
    u32x8 out;
    _Pragma("unroll(kUnroll)") for (int32 i = 0; i < 8; ++i) {
      out[i] = 0;
      _Pragma("unroll(kUnroll)") for (int32 b = 0; b < 4; ++b) {
        const int32 position = first + 4 * i + b;
        const uint32 value = row[position < width ? position : width - 1];
        out[i] |= position < width ? value << (8 * b) : 0u;
      }
    }
    return out;
  }

  // B operand h of chunk c: its 16 codes are bytes 16 h.. (8 bits), or nibbles h of bytes 16 c.. (4 bits).
  static u32x8 operand(u32x8 bytes, int32 c, int32 h, uint8 zero) {
    const int32 first = 16 * (kNibbles ? c : h);
    u32x8 b;
    _Pragma("unroll(kUnroll)") for (int32 i = 0; i < 8; ++i) {
      const uint32 pair = bytes[first / 4 + i / 2] >> (i % 2 * 16);
      b[i] = uint32(arch::decode<Config::encoding>(uint8(pair), h == 1, zero)) |
             uint32(arch::decode<Config::encoding>(uint8(pair >> 8), h == 1, zero)) << 16;
    }
    return b;
  }

  static void run(f32x8 (&acc)[kAccumulators], const Weights& w, const Tokens& x, const Quant& quant, int32 expert,
                  Place, int32 k_begin, int32 k_end) {
    if (k_begin >= k_end) return;
    const uint16* row[Config::tile_rows];
    _Pragma("unroll(kUnroll)") for (int32 r = 0; r < Config::tile_rows; ++r)
      row[r] = token_row<Config>(x, x.first + r);
    ColumnLaneScales<Config> scales(w, x, quant, expert, k_begin);

    for (int32 k = k_begin; k < k_end; k += kStep) {
      if constexpr (kBlock != 0) {
        if (k > k_begin && (kBlock <= kStep || k % kBlock == 0)) scales.next(acc, k);
      }
      _Pragma("unroll(kUnroll)") for (int32 c = 0; c < kChunks; ++c) {
        if constexpr (kBlock == 32 && kChunks == 2) {
          if (c == 1 && k + 32 < w.k) scales.next(acc, k + 32);
        }
        A tokens[kTokenBlocks][2];
        _Pragma("unroll(kUnroll)") for (int32 r = 0; r < Config::tile_rows; ++r) {
          const arch::u32x2 pair = arch::read_row<kEmulated, kSimd>(row[r] + k + 32 * c);
          tokens[r / 8][0][r % 8] = pair[0];
          tokens[r / 8][1][r % 8] = pair[1];
        }
        _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q)
          _Pragma("unroll(kUnroll)") for (int32 j = 0; j < kColumnBlocks; ++j) {
            const u32x8 bytes = load(w, q, w.column[q] + kSimd * j, k);
            _Pragma("unroll(kUnroll)") for (int32 h = 0; h < 2; ++h) {
              const u32x8 b = operand(bytes, c, h, scales.zero[q][j]);
              _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i) {
                f32x8& sum = acc[index(q, j, i)];
                sum = arch::dpas<kEmulated, kSimd, DType::fp16>(tokens[i][h], b, sum);
              }
            }
          }
      }
    }
    scales.finish(acc);
  }

  static void idle(const Weights&, const Tokens&, Place, int32, int32) {}
};

}  // namespace jitmoe::mainloop

// SPDX-License-Identifier: MIT
// Main loop of quantized weights [N][K] as the A operand of fp16 dpas, tokens as B: xe_weights_a.hpp with codes that are
// converted in registers (arch/codes.hpp) and scales (xe_scales.hpp).
//
//   acc[q][j][i] element m, lane n = sum over k of W[column[q] + 8j + m][k] * x[first + S*i + n][k], W = code * scale
//
// A step is 32 bytes of each weight row: 32 k of 8-bit codes, 64 k of 4-bit codes, in chunks of 32 k. One 2D load of bytes
// per column block brings the codes of all its rows; where 2D blocks cannot read them, masked byte loads make the same
// registers. Tokens are packed fp16 rows (kernel/xe_quantize.hpp): K padded with zeros to a multiple of 64, for 4-bit codes
// in the order even k, odd k of each 32, so that whole registers are converted and nothing is shuffled.
// Scale blocks are multiples of 32 k: for 4-bit codes 32 or a multiple of 64.
#pragma once

#include <jitmoe/arch/codes.hpp>
#include <jitmoe/arch/dpas.hpp>
#include <jitmoe/mainloop/xe_prefetch.hpp>
#include <jitmoe/mainloop/xe_scales.hpp>

namespace jitmoe::mainloop {

using arch::f32x8;
using arch::u32x8;

template <class Config> struct XeCodesA : TokenLaneTile<Config> {
  using Tile = TokenLaneTile<Config>;
  using Tile::kColumnBlocks, Tile::kTokenBlocks, Tile::kAccumulators, Tile::kUnroll, Tile::index;
  using Accumulator = f32x8;
  static constexpr int32 kSimd = Config::simd;
  static constexpr bool kEmulated = Config::emulated;
  static constexpr bool kNibbles = arch::is_4_bit(Config::encoding);
  static constexpr bool kBlockWeights = Config::weights == XeWeights::block2d;
  static constexpr int32 kChunks = kNibbles ? 2 : 1;  // of 32 k per step
  static constexpr int32 kStep = 32 * kChunks;        // elements of K
  static constexpr int32 kStepBytes = 32;
  static_assert(kSimd == 16 && Config::layout == Layout::nk && Config::tokens == XeTokens::block2d);
  static_assert(Config::tile_columns == 16 || Config::tile_columns == 32, "one load per column block");

  static constexpr int32 kRows = Config::tile_columns;
  static constexpr bool kBlocked = kScaleBlock<Config> != 0;
  static constexpr int32 kBlock = kScaleBlock<Config>;
  static_assert(kBlock % kStep == 0 || kBlock == 32, "scale blocks: whole chunks");

  static constexpr int32 kWeightShares = shares(Config::sub_groups_m, 2 * Config::tile_columns, 16);
  static constexpr int32 kWeightRows = 2 * Config::tile_columns / kWeightShares;
  static constexpr int32 kWeightMessages = kWeightRows > kRows ? 2 : 1;
  static constexpr int32 kWeightMessageRows = kWeightRows / kWeightMessages;
  static constexpr int32 kTokenShares = shares(Config::sub_groups_n, Config::tile_rows, 8);
  static constexpr int32 kTokenRows = Config::tile_rows / kTokenShares;

  static int32 code_bytes(int32 k) { return kNibbles ? (k + 1) / 2 : k; }
  static arch::Surface weight_surface(const Weights& w, int32 q) {
    const Block block = block_of(w, q);
    return {block.matrix, block.first_k + code_bytes(w.k), w.columns, int32(w.stride)};
  }

  // A weight prefetch brings 64 B of each row, two steps, so it is sent every other step.
  struct Prefetcher {
    arch::LoadPayload<kEmulated, kWeightMessageRows, 2> first, second;
    arch::LoadPayload<kEmulated, kTokenRows, 2> tokens;
    bool is_due = true;

    Prefetcher(const Weights& w, const Tokens& x, Place place, int32 k)
        : first(weights_from(w, k, place.m % kWeightShares * kWeightRows)),
          second(weights_from(w, k, place.m % kWeightShares * kWeightRows + kWeightMessageRows)),
          tokens(token_surface(x), k, x.first + place.n % kTokenShares * kTokenRows) {}

    static arch::LoadPayload<kEmulated, kWeightMessageRows, 2> weights_from(const Weights& w, int32 k, int32 row) {
      const int32 q = row / kRows;
      const Block block = block_of(w, q);
      return {weight_surface(w, q), (block.first_k + code_bytes(k)) / 2, block.column + row % kRows};
    }

    void step() {
      if constexpr (kBlockWeights) {
        if (is_due) {
          arch::prefetch(first, 0, 0);
          first.add_x(kStepBytes);
          if constexpr (kWeightMessages == 2) {
            arch::prefetch(second, 0, 0);
            second.add_x(kStepBytes);
          }
        }
        is_due = !is_due;
      }
      _Pragma("unroll(kUnroll)") for (int32 c = 0; c < kChunks; ++c) {
        arch::prefetch(tokens, 32 * c, 0);
      }
      tokens.add_x(kStep);
    }
  };

  // The registers of a 2D load by masked byte loads: rows past the end repeat the last one (their results are never
  // kept), bytes past the end are 0.
  static void element_bytes(const Weights& w, int32 q, int32 k, uint8 (&out)[2 * kRows]) {
    const int32 width = code_bytes(w.k);
    _Pragma("unroll(kUnroll)") for (int32 c = 0; c < 2; ++c) {
      const int32 position = code_bytes(k) + 16 * c + arch::lane_id();
      _Pragma("unroll(kUnroll)") for (int32 r = 0; r < kRows; ++r) {
        const int32 n = w.column[q] + r < w.columns ? w.column[q] + r : w.columns - 1;
        const uint8* row = reinterpret_cast<const uint8*>(w.matrix[q]) + n * w.stride + w.first_k[q];
        const uint8 value = row[position < width ? position : width - 1];
        out[c * kRows + r] = position < width ? value : uint8(0);
      }
    }
  }

  // acc = W x^T over k in [k_begin, k_end), multiples of the step.
  static void run(f32x8 (&acc)[kAccumulators], const Weights& w, const Tokens& x, const Quant& quant, int32 expert,
                  Place place, int32 k_begin, int32 k_end) {
    if (k_begin >= k_end) return;
    using Bytes = arch::BytesPayload<kEmulated, kRows>;
    Bytes block[2] = {{weight_surface(w, 0), w.first_k[0] + code_bytes(k_begin), w.column[0]},
                      {weight_surface(w, 1), w.first_k[1] + code_bytes(k_begin), w.column[1]}};
    arch::TransposedPayload<kEmulated> token_block(token_surface(x), k_begin / 2, x.first);
    Prefetcher prefetcher(w, x, place, k_begin);
    for (int32 ahead = 0; ahead < Config::prefetch_steps; ++ahead) prefetcher.step();
    TokenLaneScales<Config> scales(w, x, quant, expert, k_begin);

    int32 k = k_begin;
    while (true) {  // a block of scales
      int32 steps = (k_end - k) / kStep;
      if constexpr (kBlock > kStep) {
        const int32 in_block = (kBlock - k % kBlock) / kStep;
        steps = in_block < steps ? in_block : steps;
      } else if constexpr (kBlocked) {
        steps = 1;
      }
      k += steps * kStep;
      [[maybe_unused]] int32 position = k - steps * kStep;
      _Pragma("nounroll") for (; steps > 0; --steps, position += kStep) {
        if constexpr (Config::split_barrier) arch::barrier_signal<kEmulated>();
        uint8 bytes[2][2 * kRows];
        _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q) {
          if constexpr (kBlockWeights) arch::load_bytes(block[q], 0, 0, bytes[q]);
          else element_bytes(w, q, position, bytes[q]);
        }
        _Pragma("unroll(kUnroll)") for (int32 c = 0; c < kChunks; ++c) {
          u32x8 tokens[kTokenBlocks][2];
          _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i)
            _Pragma("unroll(kUnroll)") for (int32 h = 0; h < 2; ++h)
              tokens[i][h] = arch::load_transposed(token_block, 16 * c + 8 * h, 16 * i);
          if (c == 0) prefetcher.step();
          if constexpr (kBlock == 32 && kChunks == 2) {
            if (c == 1 && position + 32 < w.k) scales.next(acc, position + 32);
          }
          _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q)
            _Pragma("unroll(kUnroll)") for (int32 j = 0; j < kColumnBlocks; ++j) {
              const auto rows = [&](int32 b) {
                arch::u8x8 out;
                _Pragma("unroll") for (int32 m = 0; m < 8; ++m) out[m] = bytes[q][b * kRows + 8 * j + m];
                return out;
              };
              arch::i16x8 a[2];
              if constexpr (kNibbles) {
                const uint8 zero = scales.zero[q][j / 2];
                const auto both = j % 2 == 0
                    ? arch::decode_nibbles<kEmulated, Config::encoding, Config::has_zero_point, false>(rows(c), zero)
                    : arch::decode_nibbles<kEmulated, Config::encoding, Config::has_zero_point, true>(rows(c), zero);
                a[0] = both.even;
                a[1] = both.odd;
              } else {
                _Pragma("unroll") for (int32 h = 0; h < 2; ++h)
                  a[h] = arch::decode_bytes<kEmulated, Config::encoding>(rows(h));
              }
              _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i)
                _Pragma("unroll") for (int32 h = 0; h < 2; ++h)
                  acc[index(q, j, i)] =
                      arch::dpas<kEmulated, kSimd, DType::fp16>(a[h], tokens[i][h], acc[index(q, j, i)]);
            }
        }
        if constexpr (kBlockWeights) {
          block[0].add_x(kStepBytes);
          block[1].add_x(kStepBytes);
        }
        token_block.add_x(kStep / 2);
        if constexpr (Config::split_barrier) arch::barrier_wait<kEmulated>();
      }
      if (k >= k_end) break;
      if constexpr (kBlocked) scales.next(acc, k);
    }
    scales.finish(acc);
  }

  static void idle(const Weights& w, const Tokens& x, Place place, int32 k_begin, int32 k_end) {
    keep_pace<Config, Prefetcher>(w, x, place, k_begin, k_end, kStep);
  }
};

}  // namespace jitmoe::mainloop

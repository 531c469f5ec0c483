// SPDX-License-Identifier: MIT
// Main loop with the weights as the A operand of dpas and the tokens as the B operand: weights with K contiguous ([N][K])
// at sub-group size 16.
//
//   acc[q][j][i] element m, lane n = sum over k of W[column[q] + 8j + m][k] * x[first + S*i + n][k]
//
// A (weights) comes straight from a plain 2D load of 32 k; no transposition. B (tokens) wants 32 contiguous bytes of
// one token's row per lane: a per-lane gather reads x through the routing table with no packing pass before it, and a
// transposed 2D load reads packed rows. Each lane ends with one token and 8 neighbouring columns per accumulator.
//
// Messages per K step at 32 x (32 + 32), S = 16: 2 weight loads + 4 token loads + 1 prefetch of each kind.
// Registers (512 B per accumulator at S = 16): 2 * tile_columns/8 * tile_rows/16 accumulators; 32x(32+32) needs 128 GRF
// of 64 B for them alone and so 256-GRF mode, 16x(32+32) and less fit the 128-GRF mode.
#pragma once

#include <jitmoe/arch/block1d.hpp>
#include <jitmoe/arch/dpas.hpp>
#include <jitmoe/mainloop/xe_prefetch.hpp>

namespace jitmoe::mainloop {

using arch::f32x8;
using arch::u32x8;

template <class Config> struct XeWeightsA : TokenLaneTile<Config> {
  using Tile = TokenLaneTile<Config>;
  using Tile::kColumnBlocks, Tile::kTokenBlocks, Tile::kAccumulators, Tile::kUnroll, Tile::index;
  // int8_dpas: codes and quantized tokens stay bytes, two to an element of this loop, and a step is 64 of them.
  static constexpr bool kInteger = kIntegerDpas<Config>;
  using Accumulator = typename Conditional<kInteger, arch::i32x8, f32x8>::type;
  static constexpr int32 kStep = mainloop::kStep;
  static constexpr int32 kSimd = Config::simd;
  static constexpr bool kEmulated = Config::emulated;
  static constexpr bool kBlockWeights = Config::weights == XeWeights::block2d;
  static constexpr bool kBlockTokens = Config::tokens == XeTokens::block2d;
  using A = arch::dpas_a_t<kSimd>;
  static_assert(kSimd == 16 && Config::layout == Layout::nk && Config::weights != XeWeights::row, "see XeWeightsB");

  static constexpr int32 kLoadRows = Config::tile_columns < 32 ? Config::tile_columns : 32;  // rows per weight load
  static constexpr int32 kLoads = Config::tile_columns / kLoadRows;

  // Weight prefetches: 2 * tile_columns rows shared out among the sub-groups that read them.
  static constexpr int32 kWeightShares = shares(Config::sub_groups_m, 2 * Config::tile_columns, 8);
  static constexpr int32 kWeightRows = 2 * Config::tile_columns / kWeightShares;
  static constexpr int32 kWeightMessages = kWeightRows > kLoadRows ? kWeightRows / kLoadRows : 1;
  static constexpr int32 kWeightMessageRows = kWeightRows / kWeightMessages;
  static constexpr int32 kTokenShares = shares(Config::sub_groups_n, Config::tile_rows, 8);
  static constexpr int32 kTokenRows = Config::tile_rows / kTokenShares;

  static Accumulator multiply(A a, u32x8 b, Accumulator c) {
    if constexpr (kInteger) return arch::dpas_int8<kEmulated>(a, b, c);
    else return arch::dpas<kEmulated, kSimd, Config::dtype>(a, b, c);
  }

  static arch::Surface weight_surface(const Weights& w, int32 q) {
    const Block block = block_of(w, q);
    return {block.matrix, (block.first_k + w.k) * 2, w.columns, int32(w.stride * 2)};
  }

  // Keeps the caches ahead of all sub-groups of the work-group, those without rows included.
  struct Prefetcher {
    arch::LoadPayload<kEmulated, kWeightMessageRows, 2> first, second;
    arch::LoadPayload<kEmulated, kTokenRows, 2> tokens;

    Prefetcher(const Weights& w, const Tokens& x, Place place, int32 k)
        : first(weights_from(w, k, place.m % kWeightShares * kWeightRows)),
          second(weights_from(w, k, place.m % kWeightShares * kWeightRows + kWeightMessageRows)),
          tokens(kBlockTokens ? token_surface(x) : weight_surface(w, 0), k,
                 x.first + place.n % kTokenShares * kTokenRows) {}

    static arch::LoadPayload<kEmulated, kWeightMessageRows, 2> weights_from(const Weights& w, int32 k, int32 row) {
      const int32 q = row / Config::tile_columns;
      const Block block = block_of(w, q);
      return {weight_surface(w, q), block.first_k + k, block.column + row % Config::tile_columns};
    }

    void step() {
      if constexpr (kBlockWeights) {
        static_assert(kWeightMessages <= 2, "prefetch: more than two messages per step");
        arch::prefetch(first, 0, 0);
        first.add_x(kStep);
        if constexpr (kWeightMessages == 2) {
          arch::prefetch(second, 0, 0);
          second.add_x(kStep);
        }
      }
      if constexpr (kBlockTokens) {
        arch::prefetch(tokens, 0, 0);
        tokens.add_x(kStep);
      }
    }
  };

  // A operand of 8 columns from `column` and 16 k from `k`, by masked 16-bit loads: columns past the end repeat the last
  // one (their results are never kept), k past the end gives zeros (whatever lies there may be a NaN).
  static A element_a(const Weights& w, int32 q, int32 column, int32 k) {
    A a;
    _Pragma("unroll(kUnroll)") for (int32 m = 0; m < arch::kDpasRows; ++m) {
      const int32 n = column + m < w.columns ? column + m : w.columns - 1;
      const uint16* row = w.matrix[q] + n * w.stride + w.first_k[q];
      const int32 position = k + arch::lane_id();
      const uint16 value = row[position < w.k ? position : w.k - 1];
      a[m] = int16(position < w.k ? value : uint16(0));
    }
    return a;
  }

  // acc += W x^T over k in [k_begin, k_end), multiples of 32.
  static void run(Accumulator (&acc)[kAccumulators], const Weights& w, const Tokens& x, Place place, int32 k_begin,
                  int32 k_end) {
    // Tokens as B operands: the lane's own row.
    const uint16* row[kTokenBlocks];
    if constexpr (!kBlockTokens) {
      _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i)
        row[i] = token_row<Config>(x, x.first + i * kSimd + arch::lane_id()) + k_begin;
    }

    arch::LoadPayload<kEmulated, kLoadRows, 2> block[2] = {
        {weight_surface(w, 0), w.first_k[0] + k_begin, w.column[0]},
        {weight_surface(w, 1), w.first_k[1] + k_begin, w.column[1]}};
    arch::TransposedPayload<kEmulated> token_block(kBlockTokens ? token_surface(x) : weight_surface(w, 0), k_begin / 2,
                                                   x.first);
    Prefetcher prefetcher(w, x, place, k_begin);
    for (int32 ahead = 0; ahead < Config::prefetch_steps; ++ahead) prefetcher.step();

    [[maybe_unused]] int32 k = k_begin;  // of operands without a descriptor
    for (int32 steps = (k_end - k_begin) / kStep; steps > 0; --steps, k += kStep) {
      if constexpr (Config::split_barrier) arch::barrier_signal<kEmulated>();

      u32x8 tokens[kTokenBlocks][2];
      A a[2][kColumnBlocks][2];
      if constexpr (kBlockWeights) {
        _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q) {
          _Pragma("unroll(kUnroll)") for (int32 l = 0; l < kLoads; ++l) {
            uint16 values[2 * kLoadRows];
            arch::load(block[q], 0, l * kLoadRows, values);
            _Pragma("unroll(kUnroll)") for (int32 r = 0; r < kLoadRows; ++r)
              _Pragma("unroll(kUnroll)") for (int32 h = 0; h < 2; ++h)
                a[q][(l * kLoadRows + r) / 8][h][r % 8] = values[h * kLoadRows + r];
          }
        }
      }
      _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i) {
        _Pragma("unroll(kUnroll)") for (int32 h = 0; h < 2; ++h) {
          if constexpr (kBlockTokens) tokens[i][h] = arch::load_transposed(token_block, 8 * h, 16 * i);
          else tokens[i][h] = arch::read_lane(row[i] + 16 * h);
        }
      }
      prefetcher.step();

      if constexpr (kBlockWeights) {
        _Pragma("unroll(kUnroll)") for (int32 h = 0; h < 2; ++h)
          _Pragma("unroll(kUnroll)") for (int32 j = 0; j < kColumnBlocks; ++j)
            _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i)
              _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q)
                acc[index(q, j, i)] = multiply(a[q][j][h], tokens[i][h], acc[index(q, j, i)]);
      } else {
        // Eight columns at a time, so that few A operands are alive at once.
        _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q)
          _Pragma("unroll(kUnroll)") for (int32 j = 0; j < kColumnBlocks; ++j) {
            const int32 column = w.column[q] + 8 * j;
            const A low = element_a(w, q, column, k), high = element_a(w, q, column, k + 16);
            _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i) {
              Accumulator& sum = acc[index(q, j, i)];
              sum = multiply(low, tokens[i][0], sum);
              sum = multiply(high, tokens[i][1], sum);
            }
          }
      }

      // Steps come after the dpas, which have waited for the loads: a descriptor that a load may still be reading costs
      // four more instructions per step on pvc.
      if constexpr (kBlockWeights) {
        block[0].add_x(kStep);
        block[1].add_x(kStep);
      }
      if constexpr (kBlockTokens) {
        token_block.add_x(kStep / 2);
      } else {
        _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i) row[i] += kStep;
      }
      if constexpr (Config::split_barrier) arch::barrier_wait<kEmulated>();
    }
  }

  static void idle(const Weights& w, const Tokens& x, Place place, int32 k_begin, int32 k_end) {
    keep_pace<Config, Prefetcher>(w, x, place, k_begin, k_end, kStep);
  }
};

}  // namespace jitmoe::mainloop

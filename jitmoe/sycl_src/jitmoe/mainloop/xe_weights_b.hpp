// SPDX-License-Identifier: MIT
// Main loop with the tokens as the A operand of dpas and the weights as the B operand: weights with N contiguous
// ([K][N]), and everything at sub-group size 8 (dg2).
//
//   acc[q][j][i] element m, lane n = sum over k of x[first + 8i + m][k] * W(column[q] + S*j + n, k)
//
// B (weights): a VNNI 2D load of [K][N] pairs two k of one column in a dword; of [N][K] rows each lane takes 32 bytes of
// its own column's row (XeWeights::row), one message per 8 columns and 16 k without a single move around it.
// A (tokens): a plain 2D load of packed rows; without 2D blocks one message per row and K step, packed or gathered.
// Each lane ends with one column and 8 neighbouring tokens per accumulator.
#pragma once

#include <jitmoe/arch/block1d.hpp>
#include <jitmoe/arch/dpas.hpp>
#include <jitmoe/mainloop/xe_prefetch.hpp>

namespace jitmoe::mainloop {

using arch::f32x8;
using arch::u32x8;

template <class Config> struct XeWeightsB : ColumnLaneTile<Config> {
  using Tile = ColumnLaneTile<Config>;
  using Tile::kColumnBlocks, Tile::kTokenBlocks, Tile::kAccumulators, Tile::kUnroll, Tile::index;
  using Accumulator = f32x8;
  static constexpr int32 kStep = mainloop::kStep;
  static constexpr int32 kSimd = Config::simd;
  static constexpr bool kEmulated = Config::emulated;
  static constexpr bool kBlockWeights = Config::weights == XeWeights::block2d;
  static constexpr bool kBlockTokens = Config::tokens == XeTokens::block2d;
  using A = arch::dpas_a_t<kSimd>;
  static_assert(Config::layout == Layout::kn || kSimd == 8, "see XeWeightsA");
  static_assert(Config::layout == Layout::kn || !kBlockWeights, "2D blocks of [N][K] weights are A operands");
  static_assert(Config::layout == Layout::nk || Config::weights != XeWeights::row, "[K][N] has no contiguous K rows");
  static_assert(!(kBlockWeights || kBlockTokens) || kSimd == 16, "2D blocks need sub-group size 16");
  static_assert(kBlockTokens || kSimd == 8, "packed rows are read by 2D blocks at sub-group size 16");

  static constexpr int32 kLoadRows = Config::tile_rows < 32 ? Config::tile_rows : 32;  // tokens per token load
  static constexpr int32 kLoads = Config::tile_rows / kLoadRows;
  static constexpr int32 kLoadBlocks = Config::tile_columns % 32 == 0 ? 2 : 1;  // blocks of 16 columns per weight load
  static constexpr int32 kTokenShares = shares(Config::sub_groups_n, Config::tile_rows, 8);
  static constexpr int32 kTokenRows = Config::tile_rows / kTokenShares;

  static arch::Surface weight_surface(const Weights& w, int32 q) {
    return {block_of(w, q).matrix, w.columns * 2, w.k, int32(w.stride * 2)};
  }

  // One 32 x 32 weight block and a share of the tokens per step; with several sub-groups along M, half of them take the
  // gate block and half the up block.
  struct Prefetcher {
    static constexpr int32 kMessages = Config::sub_groups_m == 1 ? 2 : 1;
    arch::LoadPayload<kEmulated, 32, 2> first, second;
    arch::LoadPayload<kEmulated, kTokenRows, 2> tokens;

    Prefetcher(const Weights& w, const Tokens& x, Place place, int32 k)
        : first(weights_from(w, kMessages == 1 ? place.m % 2 : 0, k)),
          second(weights_from(w, 1, k)),
          tokens(kBlockTokens ? token_surface(x) : weight_surface(w, 0), k,
                 x.first + place.n % kTokenShares * kTokenRows) {}

    static arch::LoadPayload<kEmulated, 32, 2> weights_from(const Weights& w, int32 q, int32 k) {
      return {weight_surface(w, q), block_of(w, q).column, k};
    }

    void step() {
      if constexpr (kBlockWeights) {
        arch::prefetch(first, 0, 0);
        first.add_y(kStep);
        if constexpr (kMessages == 2) {
          arch::prefetch(second, 0, 0);
          second.add_y(kStep);
        }
      }
      if constexpr (kBlockTokens) {
        arch::prefetch(tokens, 0, 0);
        tokens.add_x(kStep);
      }
    }
  };

  // B operand of S columns from `column` and 16 k from `k`: columns past the end repeat the last one (their results are
  // never kept); k past the end gives zeros (whatever lies there may be a NaN).
  static u32x8 load_b(const Weights& w, int32 q, int32 column, int32 k) {
    const int32 n = column + arch::lane_id() < w.columns ? column + arch::lane_id() : w.columns - 1;
    const uint16* matrix = w.matrix[q] + (Config::layout == Layout::kn ? n : n * w.stride + w.first_k[q]);
    if constexpr (Config::weights == XeWeights::row) return arch::read_lane(matrix + k);
    const auto at = [&](int32 position) {
      const int32 inside = position < w.k ? position : w.k - 1;
      const uint16 value = matrix[Config::layout == Layout::kn ? inside * w.stride : inside];
      return position < w.k ? value : uint16(0);
    };
    u32x8 b;
    _Pragma("unroll(kUnroll)") for (int32 i = 0; i < 8; ++i)
      b[i] = uint32(at(k + 2 * i)) | uint32(at(k + 2 * i + 1)) << 16;
    return b;
  }

  static void run(f32x8 (&acc)[kAccumulators], const Weights& w, const Tokens& x, Place place, int32 k_begin,
                  int32 k_end) {
    arch::LoadPayload<kEmulated, 32, kLoadBlocks> block[2] = {{weight_surface(w, 0), w.column[0], k_begin},
                                                              {weight_surface(w, 1), w.column[1], k_begin}};
    arch::LoadPayload<kEmulated, kLoadRows, 2> token_block(kBlockTokens ? token_surface(x) : weight_surface(w, 0),
                                                           k_begin, x.first);
    // Without 2D blocks: the token rows' addresses, the same for all lanes.
    const uint16* row[kBlockTokens ? 1 : Config::tile_rows];
    if constexpr (!kBlockTokens) {
      _Pragma("unroll(kUnroll)") for (int32 r = 0; r < Config::tile_rows; ++r)
        row[r] = token_row<Config>(x, x.first + r);
    }
    Prefetcher prefetcher(w, x, place, k_begin);
    for (int32 ahead = 0; ahead < Config::prefetch_steps; ++ahead) prefetcher.step();

    [[maybe_unused]] int32 k = k_begin;  // of operands without a descriptor
    for (int32 steps = (k_end - k_begin) / kStep; steps > 0; --steps, k += kStep) {
      if constexpr (Config::split_barrier) arch::barrier_signal<kEmulated>();

      A tokens[kTokenBlocks][2];
      if constexpr (kBlockTokens) {
        _Pragma("unroll(kUnroll)") for (int32 l = 0; l < kLoads; ++l) {
          uint16 values[2 * kLoadRows];
          arch::load(token_block, 0, l * kLoadRows, values);
          _Pragma("unroll(kUnroll)") for (int32 r = 0; r < kLoadRows; ++r)
            _Pragma("unroll(kUnroll)") for (int32 h = 0; h < 2; ++h)
              tokens[(l * kLoadRows + r) / 8][h][r % 8] = values[h * kLoadRows + r];
        }
        token_block.add_x(kStep);
      } else {
        _Pragma("unroll(kUnroll)") for (int32 r = 0; r < Config::tile_rows; ++r) {
          const arch::u32x2 pair = arch::read_row<kEmulated, kSimd>(row[r] + k);
          tokens[r / 8][0][r % 8] = pair[0];
          tokens[r / 8][1][r % 8] = pair[1];
        }
      }
      prefetcher.step();

      _Pragma("unroll(kUnroll)") for (int32 q = 0; q < 2; ++q) {
        _Pragma("unroll(kUnroll)") for (int32 l = 0; l < kColumnBlocks / (kBlockWeights ? kLoadBlocks : 1); ++l) {
          constexpr int32 kPerLoad = kBlockWeights ? kLoadBlocks : 1;
          u32x8 b[kPerLoad][2];
          if constexpr (kBlockWeights) {
            uint32 values[16 * kLoadBlocks];
            arch::load_vnni(block[q], l * kLoadBlocks * 16, 0, values);
            _Pragma("unroll(kUnroll)") for (int32 c = 0; c < kPerLoad; ++c)
              _Pragma("unroll(kUnroll)") for (int32 h = 0; h < 2; ++h)
                _Pragma("unroll(kUnroll)") for (int32 i = 0; i < 8; ++i) b[c][h][i] = values[16 * c + 8 * h + i];
          } else {
            b[0][0] = load_b(w, q, w.column[q] + l * kSimd, k);
            b[0][1] = load_b(w, q, w.column[q] + l * kSimd, k + 16);
          }
          _Pragma("unroll(kUnroll)") for (int32 c = 0; c < kPerLoad; ++c)
            _Pragma("unroll(kUnroll)") for (int32 h = 0; h < 2; ++h)
              _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i) {
                f32x8& sum = acc[index(q, l * kPerLoad + c, i)];
                sum = arch::dpas<kEmulated, kSimd, Config::dtype>(tokens[i][h], b[c][h], sum);
              }
        }
        if constexpr (kBlockWeights) block[q].add_y(kStep);
      }

      if constexpr (Config::split_barrier) arch::barrier_wait<kEmulated>();
    }
  }

  static void idle(const Weights& w, const Tokens& x, Place place, int32 k_begin, int32 k_end) {
    keep_pace<Config, Prefetcher>(w, x, place, k_begin, k_end, kStep);
  }
};

}  // namespace jitmoe::mainloop

// SPDX-License-Identifier: MIT
// What both main loops (xe_weights_a.hpp, xe_weights_b.hpp) share: the operands of one sub-group's tile and its position.
//
// A sub-group computes tile_rows tokens x (tile_columns + tile_columns) columns: two blocks of weight columns against the
// same tokens. For gate_up they are a gate block and its up block, for down two neighbouring blocks.
// Letters: m token row of the block, n weight column, k reduction index, S sub-group size. A K step is 32 elements.
#pragma once

#include <jitmoe/arch/choices.hpp>
#include <jitmoe/arch/sub_group.hpp>

namespace jitmoe::mainloop {

constexpr int32 kStep = 32;  // elements of K per step: one 64 B line of a 16-bit row, two dpas deep

// Element (n, k) of block q: nk: matrix[q][n * stride + first_k[q] + k], kn: matrix[q][k * stride + n]. Of codes, matrix
// points to bytes, stride and first_k count bytes, and column n is row n * row_step + first_row[q] of the tensor.
struct Weights {
  const uint16* matrix[2];  // one expert's, per block; two tensors only if gate and up rows are separate
  int64 stride;             // elements between rows of the storage; nk, alternating gate and up rows: twice that
  int32 columns;            // in the matrix, beyond which nothing may be read
  int32 k;                  // K without padding
  int32 column[2];          // first column of the sub-group's two blocks
  int32 first_k[2];         // nk, alternating gate and up rows: an up row starts where its gate row's neighbour does
  int32 row_step = 1;
  int32 first_row[2] = {0, 0};
};

// What prefetches need of block q; an index known at run time only would put the whole struct into memory.
struct Block {
  const uint16* matrix;
  int32 column;
  int32 first_k;
};
inline Block block_of(const Weights& w, int32 q) {
  return q == 0 ? Block{w.matrix[0], w.column[0], w.first_k[0]} : Block{w.matrix[1], w.column[1], w.first_k[1]};
}

struct Tokens {
  const uint16* rows;         // gather: hidden_states; else the first packed row of the row block
  const int32* pairs;         // gather: sorted pairs of the row block
  int64 stride;               // elements between rows
  int32 top_k;                // gather: a pair's token is pair / top_k
  int32 count;                // rows in the row block
  int32 first;                // the sub-group's first row, < count
  int32 width;                // readable elements of a row: a multiple of 32
};

// Row m of the row block, the last one past its end (results of those are dropped).
template <class Config> inline const uint16* token_row(const Tokens& x, int32 m) {
  m = m < x.count ? m : x.count - 1;
  if constexpr (Config::tokens == XeTokens::gather) m = x.pairs[m] / x.top_k;
  return x.rows + m * x.stride;
}

// The sub-group's place among those that share its operands, for sharing out the prefetches.
struct Place {
  int32 m;  // of Config::sub_groups_m that read the same weights
  int32 n;  // of Config::sub_groups_n that read the same tokens
};

// The accumulators of a tile, 32 B per lane each: index(q, j, i) is that of `columns` columns of block q and `tokens`
// tokens. One of the two lies along the lanes, the other along the 8 elements.
template <class Config, int32 columns, int32 tokens> struct AccumulatorTile {
  static constexpr int32 kColumnBlocks = Config::tile_columns / columns, kTokenBlocks = Config::tile_rows / tokens;
  static constexpr int32 kAccumulators = 2 * kColumnBlocks * kTokenBlocks;
  static constexpr int32 kUnroll = Config::emulated ? 1 : 64;  // all, for registers; none keeps the CPU build short
  static_assert(Config::tile_columns % columns == 0 && Config::tile_rows % tokens == 0, "tile: whole dpas only");

  static int32 index(int32 q, int32 j, int32 i) { return (q * kColumnBlocks + j) * kTokenBlocks + i; }
};
template <class Config> using TokenLaneTile = AccumulatorTile<Config, 8, Config::simd>;
template <class Config> using ColumnLaneTile = AccumulatorTile<Config, Config::simd, 8>;

// The number of sub-groups that `items` of prefetching, `least` at a time, are shared out among.
constexpr int32 shares(int32 sub_groups, int32 items, int32 least) {
  const int32 most = items / least;
  return sub_groups < most ? sub_groups : most;
}

}  // namespace jitmoe::mainloop

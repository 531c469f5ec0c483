// SPDX-License-Identifier: MIT
// Tile sums of a block of K, scaled and added to the sums of all blocks (amx_form.hpp):
//
//   sums[n][t] += row_scale[n] * token_scale[t] * products[n][t]
//
//   products     fp32 or int32, [token tile][2][16 rows][16 tokens] of up to three token tiles: what the tile registers held;
//                of 16-bit tokens 256 times that of the first tile, of their high bytes, and that of the second
//   row_scale    of the block, per weight row
//   token_scale  of the block, per token
//
// A block's products are added beside the multiplications of the next one, and are all added before that one's are stored:
// one buffer is enough.
// Numerics: the product of both scales is rounded to fp32, then fused multiply and add.
#pragma once

#include <jitmoe/cpu/amx.hpp>
#include <jitmoe/cpu/beside.hpp>
#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

constexpr int kMaxBlocks = 32;  // of one piece of staged weights

template <amx::Dot dot>
using ProductOf = typename Conditional<dot == amx::Dot::int8 || dot == amx::Dot::int16, int32, float>::type;

// Local memory of SumBlocks.
template <amx::Dot dot> struct BlockScratch {
  ProductOf<dot> products[3 * 2 * amx::kTileFloats];
  float row_scales[kMaxBlocks][2 * amx::kRows];
};

// The block whose products are still to be added, if any.
template <amx::Dot dot> class SumBlocks {
  using Product = ProductOf<dot>;

 public:
  explicit SumBlocks(BlockScratch<dot>& scratch) : products_(scratch.products) {}

  // The products of num_tiles token tiles are stored now, after a finish(): they are added in the next `turns` turns. Token
  // scales of a tile and of the next one lie `tile_floats` apart.
  void begin(const float* row_scales, const float* token_scales, int64 tile_floats, int num_tiles, bool is_first,
             float* sums, int64 turns) {
    row_scales_ = row_scales;
    token_scales_ = token_scales;
    tile_floats_ = tile_floats;
    is_first_ = is_first;
    sums_ = sums;
    adding_ = Pace(num_tiles * kUnitsPerTile, turns);
  }

  void turn() {
    adding_.turn([&](int64 i) { add(i); });
  }
  void finish() {
    adding_.finish([&](int64 i) { add(i); });
  }

 private:
  static constexpr int kUnitRows = 8;
  static constexpr int kUnitsPerTile = 2 * amx::kRows / kUnitRows;

  void add(int64 i) {
    using F = Vec<float, amx::kTokens>;
    const F token_scale = load<F>(token_scales_ + i / kUnitsPerTile * tile_floats_);
    const float* const row_scales = row_scales_ + i % kUnitsPerTile * kUnitRows;
    const Product* const from = products_ + i * kUnitRows * amx::kTokens;
    float* const to = sums_ + i * kUnitRows * amx::kTokens;
    const auto rows = [&](auto first) {
#pragma unroll
      for (int n = 0; n < kUnitRows; ++n) {
        auto number = load<Vec<Product, amx::kTokens>>(from + n * amx::kTokens);
        if constexpr (dot == amx::Dot::int16) {
          using U = Vec<uint32, amx::kTokens>;  // 256 times the high part may leave int32, the sum does not
          number = bit_cast<decltype(number)>((bit_cast<U>(number) << 8) +
                                              load<U>(from + 2 * amx::kTileFloats + n * amx::kTokens));
        }
        const F product = __builtin_convertvector(number, F);
        const F scale = token_scale * row_scales[n];
        if constexpr (decltype(first)::value) store(to + n * amx::kTokens, product * scale);
        else
          store(to + n * amx::kTokens, multiply_add<CpuIsa::amx_bf16, amx::kTokens>(
                                           product, scale, load<F>(to + n * amx::kTokens)));
      }
    };
    if (is_first_) rows(Int<1>{});
    else rows(Int<0>{});
  }

  const Product* products_;
  const float* row_scales_ = nullptr;
  const float* token_scales_ = nullptr;
  int64 tile_floats_ = 0;
  bool is_first_ = false;
  float* sums_ = nullptr;
  Pace adding_;
};

}  // namespace jitmoe::cpu

// SPDX-License-Identifier: MIT
// Second grouped GEMM with the routing weight, without dpas (formula and tensors: kernel/xe_gemm_args.hpp); nd_range
// and numerics as mainloop/xe_vector.hpp. Row blocks hold at most tile_rows rows.
#pragma once

#include <jitmoe/epilogue/routing_weight.hpp>
#include <jitmoe/kernel/grid.hpp>
#include <jitmoe/kernel/xe_gemm_args.hpp>
#include <jitmoe/mainloop/xe_vector_codes.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_vector_down(const XeDownArgs& args) {
  constexpr int32 kRows = Config::tile_rows, kColumns = Config::sub_groups * Config::simd;
  const auto item = nd_item<1>();
  const auto* pairs = static_cast<const int32*>(args.sorted_pairs);
  mainloop::VectorOperands<Config> operands{
      {args.w2, args.w2}, args.w_expert_stride, args.w_stride, args.hidden_size, args.intermediate_size, {}};
  if constexpr (Quantized<Config>) operands.quant = mainloop::quant_of(args);
  const int32 num_column_tiles = (args.num_columns + 2 * kColumns - 1) / (2 * kColumns);

  auto walk = grid_walk();
  scheduler::for_each_tile(
      static_cast<const int32*>(args.blocks), *static_cast<const int32*>(args.num_blocks), num_column_tiles, walk,
      [&](const scheduler::Tile& tile) {
        const int32 n = tile.column * 2 * kColumns + int32(item.get_local_id(0));
        int32 columns[2];
        float bias[2] = {};
        int32 rows[kRows];
        _Pragma("unroll") for (int32 q = 0; q < 2; ++q) {
          const int32 here = n + q * kColumns;
          const int32 column = args.first_column + (here < args.num_columns ? here : args.num_columns - 1);
          columns[q] = column;
          if constexpr (Config::has_bias)
            bias[q] = arch::read_float<Config::bias_dtype>(args.w2_bias, int64(tile.expert) * args.hidden_size + column);
        }
        _Pragma("unroll") for (int32 m = 0; m < kRows; ++m)
          rows[m] = tile.first + (m < tile.count ? m : tile.count - 1);
        float acc[2][kRows] = {};
        mainloop::run_vector<Config>(acc, operands, tile.expert, columns, args.inter, args.inter_pitch, rows);
        _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) {
          if (m >= tile.count) continue;
          const int32 pair = pairs[tile.first + m];
          float weight = 1.0f;
          if constexpr (Config::weighted)
            weight = epilogue::routing_weight<Config::topk_weights_dtype>(args.topk_weights, pair, args.top_k,
                                                                args.topk_weights_row_stride);
          auto* row = static_cast<float*>(args.partial) + int64(pair) * args.partial_pitch;
          if (n < args.num_columns) row[n] = (acc[0][m] + bias[0]) * weight;
          if (n + kColumns < args.num_columns) row[n + kColumns] = (acc[1][m] + bias[1]) * weight;
        }
      });
}

}  // namespace jitmoe::kernel

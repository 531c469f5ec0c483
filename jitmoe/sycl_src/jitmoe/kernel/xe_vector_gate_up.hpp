// SPDX-License-Identifier: MIT
// First grouped GEMM with the activation, without dpas (formula and tensors: kernel/xe_gemm_args.hpp); tokens are
// gathered unless Quantized; nd_range and numerics as mainloop/xe_vector.hpp. Row blocks hold at most tile_rows rows.
// A work-item's two columns are a gate column and its up column, or without a gate two of x that are S * sub_groups
// apart.
#pragma once

#include <jitmoe/epilogue/routing_weight.hpp>
#include <jitmoe/epilogue/xe_activation.hpp>
#include <jitmoe/kernel/grid.hpp>
#include <jitmoe/kernel/xe_gemm_args.hpp>
#include <jitmoe/mainloop/xe_vector_codes.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_vector_gate_up(const XeGateUpArgs& args) {
  using Element = element_t<kInterDtype<Config>>;
  constexpr int32 kRows = Config::tile_rows, kColumns = Config::sub_groups * Config::simd;
  constexpr bool kUngated = Config::gate_up == GateUp::ungated, kSeparate = Config::gate_up == GateUp::separate;
  constexpr int32 kTile = kUngated ? 2 * kColumns : kColumns;
  const auto item = nd_item<1>();
  const auto* pairs = static_cast<const int32*>(args.sorted_pairs);
  mainloop::VectorOperands<Config> operands{{args.w1, kSeparate ? args.w1_up : args.w1},
                                            args.w_expert_stride,
                                            args.w_stride,
                                            kUngated || kSeparate ? args.intermediate_size : 2 * args.intermediate_size,
                                            args.hidden_size,
                                            {}};
  if constexpr (Quantized<Config>) operands.quant = mainloop::quant_of(args);
  const int32 num_column_tiles = (args.intermediate_size + kTile - 1) / kTile;

  auto walk = grid_walk();
  scheduler::for_each_tile(
      static_cast<const int32*>(args.blocks), *static_cast<const int32*>(args.num_blocks), num_column_tiles, walk,
      [&](const scheduler::Tile& tile) {
        const int32 n = tile.column * kTile + int32(item.get_local_id(0));
        int32 columns[2];
        float bias[2] = {};
        _Pragma("unroll") for (int32 q = 0; q < 2; ++q) {
          const int32 here = kUngated ? n + q * kColumns : n;
          const int32 safe = here < args.intermediate_size ? here : args.intermediate_size - 1;
          const int32 row = epilogue::w1_row<Config::gate_up>(safe, q, args.intermediate_size);
          columns[q] = kSeparate ? safe : row;
          if constexpr (Config::has_bias)
            bias[q] = arch::read_float<Config::bias_dtype>(
                args.w1_bias, int64(tile.expert) * (kUngated ? 1 : 2) * args.intermediate_size + row);
        }
        int32 rows[kRows];
        _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) {
          const int32 r = tile.first + (m < tile.count ? m : tile.count - 1);
          rows[m] = Quantized<Config> ? r : pairs[r] / args.top_k;
        }
        float acc[2][kRows] = {};
        const void* x = Quantized<Config> ? args.packed_x : args.hidden_states;
        mainloop::run_vector<Config>(acc, operands, tile.expert, columns, x, args.x_stride, rows);
        auto* inter = static_cast<Element*>(args.inter) + int64(tile.first) * args.inter_pitch;
        _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) {
          if (m >= tile.count) continue;
          float weight = 1.0f;
          if constexpr (Config::router_weight_on_input)
            weight = epilogue::routing_weight<Config::topk_weights_dtype>(args.topk_weights, pairs[tile.first + m],
                                                                          args.top_k, args.topk_weights_row_stride);
          const float first = acc[0][m] * weight + bias[0], second = acc[1][m] * weight + bias[1];
          const auto keep = [&](int32 column, float gate, float up) {
            if (column >= args.intermediate_size) return;
            inter[int64(m) * args.inter_pitch + column] = arch::narrow<Config::emulated, kInterDtype<Config>>(
                epilogue::xe_gated<Config>(gate, up, {args.swiglu_alpha, args.swiglu_limit}));
          };
          keep(n, first, second);
          if constexpr (kUngated) keep(n + kColumns, second, second);
        }
      });
}

}  // namespace jitmoe::kernel

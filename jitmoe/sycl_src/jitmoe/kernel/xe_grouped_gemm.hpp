// SPDX-License-Identifier: MIT
// The grouped GEMM under xe_gate_up and xe_down: walk over tiles, sub-group tiles, K slices; an epilogue keeps results.
//
// nd_range: grid x (sub_groups_m * sub_groups_n * k_slices * S) work-items, one dimension. Sub-group id within the
// work-group = (slice * sub_groups_m + m) * sub_groups_n + n. Work-group tile = sub_groups_m * tile_rows rows of one
// expert x sub_groups_n sub-tiles of two column blocks. SLM: mainloop/k_slices.hpp.
#pragma once

#include <jitmoe/epilogue/routing_weight.hpp>
#include <jitmoe/kernel/grid.hpp>
#include <jitmoe/mainloop/k_slices.hpp>
#include <jitmoe/mainloop/xe_codes_a.hpp>
#include <jitmoe/mainloop/xe_codes_b.hpp>
#include <jitmoe/mainloop/xe_weights_a.hpp>
#include <jitmoe/mainloop/xe_weights_b.hpp>
#include <jitmoe/scheduler/block_walk.hpp>

namespace jitmoe::kernel {

using arch::f32x8;
using epilogue::routing_weight;

struct XeGroupedGemm {
  const void* x;               // gather: hidden_states [M][x_stride]; else packed rows [pairs][x_stride]
  const int32* sorted_pairs;   // [pairs]
  const int32* blocks;         // [num_blocks][4]
  const int32* num_blocks;     // [1]
  const void* w[2];            // [E] matrices, of the first and of the second column block
  int64 x_stride;              // elements
  int64 w_expert_stride;       // elements
  int64 w_stride;              // elements, mainloop::Weights
  int32 top_k;
  int32 k;                     // K of the weights
  int32 w_columns;             // columns of one matrix
  int32 first_column;          // column that output column 0 comes from
  int32 second_block;          // distance of the second column block from the first
  int32 second_k;              // mainloop::Weights::first_k of the second block
  int32 columns;               // output columns to go through (of the first block)
  int32 column_step;           // output columns per sub-group
  // Of quantized weights. Strides and second_k then count bytes; of int8_dpas, k, w_stride, x_stride and second_k count
  // pairs of codes.
  mainloop::Quant quant;       // x_scale: of row 0
  bool alternating_rows;       // column n of block q is row 2n + q of the tensor, else row n
};

// [K][N] weights with alternating gate and up columns: both blocks are read as they lie, and neighbouring lanes of the
// accumulators are a column's gate and up.
template <class Config> constexpr bool kPairedLanes = false;
template <class Config>
  requires(Config::gate_up == GateUp::interleaved && Config::layout == Layout::kn)
constexpr bool kPairedLanes<Config> = true;

// Lane n of the result: lane 2n + odd of `low` and `high` side by side.
template <int32 simd> inline f32x8 every_other(f32x8 low, f32x8 high, int32 odd) {
  const int32 lane = arch::lane_id(), from = (2 * lane + odd) % simd;
  f32x8 out;
  _Pragma("unroll") for (int32 m = 0; m < 8; ++m) {
    const float first = arch::shuffle(float(low[m]), from), second = arch::shuffle(float(high[m]), from);
    out[m] = 2 * lane < simd ? first : second;
  }
  return out;
}

// The fields that both kernels' arguments have under one name; describe_quant fills in those of quantized weights, last.
template <class Args> inline XeGroupedGemm grouped_gemm_of(const Args& args) {
  XeGroupedGemm gemm{};
  gemm.sorted_pairs = static_cast<const int32*>(args.sorted_pairs);
  gemm.blocks = static_cast<const int32*>(args.blocks);
  gemm.num_blocks = static_cast<const int32*>(args.num_blocks);
  gemm.w_expert_stride = args.w_expert_stride;
  gemm.w_stride = args.w_stride;
  gemm.top_k = args.top_k;
  return gemm;
}

template <class Config, class Args>
inline void describe_quant(XeGroupedGemm& gemm, const Args& args) {
  gemm.quant = mainloop::quant_of(args);
  if constexpr (kIntegerDpas<Config>) {
    gemm.k = (gemm.k + 1) / 2;
    gemm.w_stride /= 2;
    gemm.x_stride /= 2;
    gemm.second_k /= 2;
  }
}

// Which operand the weights are, and so whether an accumulator's lanes are tokens or columns.
template <class Config> constexpr bool kTokenLanes = Config::layout == Layout::nk && Config::simd == 16;
template <class Config> constexpr bool kConverted = Quantized<Config> && !kIntegerDpas<Config>;  // codes to fp16
template <class Config>
using xe_main_loop_t =
    typename Conditional<kTokenLanes<Config>,
                         Conditional<kConverted<Config>, mainloop::XeCodesA<Config>, mainloop::XeWeightsA<Config>>,
                         Conditional<kConverted<Config>, mainloop::XeCodesB<Config>, mainloop::XeWeightsB<Config>>>::
        type::type;

// SLM that xe_grouped_gemm needs.
template <class Config, class MainLoop = xe_main_loop_t<Config>>
constexpr int32 kSliceBytes = mainloop::slice_bytes(
    Config::k_slices, Config::sub_groups_m * Config::sub_groups_n, MainLoop::kAccumulators, Config::simd);

// Weights as A: epilogue.begin_row(row), then token_lanes(column, first, second): the lane's row, 8 columns from `column`.
// Weights as B: epilogue.begin_rows(row), then column_lanes(column, first, second): 8 rows, lane n has column + n.
// Rows count from the row block's first sorted pair and may reach past its count.
template <class Config, class MainLoop, class Walk, class MakeEpilogue>
inline void xe_grouped_gemm(const XeGroupedGemm& gemm, Walk& walk, JITMOE_LOCAL void* slices,
                            MakeEpilogue make_epilogue) {
  constexpr int32 kSubGroups = Config::sub_groups_m * Config::sub_groups_n;
  constexpr int32 kSimd = Config::simd;

  const int32 sub_group = arch::sub_group_id();
  const int32 slice = sub_group / kSubGroups, tile_index = sub_group % kSubGroups;
  const mainloop::Place place{tile_index / Config::sub_groups_n, tile_index % Config::sub_groups_n};
  constexpr int32 kStep = MainLoop::kStep;
  const int32 steps = (gemm.k + kStep - 1) / kStep;
  const mainloop::Slice part = mainloop::slice_of(steps, slice, Config::k_slices);
  const int32 k_begin = part.begin * kStep, k_end = part.end * kStep;
  const int32 tile_columns = gemm.column_step * Config::sub_groups_n;
  const int32 num_column_tiles = (gemm.columns + tile_columns - 1) / tile_columns;

  scheduler::for_each_tile(
      gemm.blocks, *gemm.num_blocks, num_column_tiles, walk, [&](const scheduler::Tile& tile) {
        const int32 row = place.m * Config::tile_rows;
        const int32 column = tile.column * tile_columns + place.n * gemm.column_step;
        const bool active = row < tile.count && column < gemm.columns;

        using Stored = typename Conditional<Quantized<Config>, uint8, uint16>::type;  // what expert strides count
        const int64 expert = tile.expert * gemm.w_expert_stride;
        const auto matrix = [&](const void* tensor) {
          return reinterpret_cast<const uint16*>(static_cast<const Stored*>(tensor) + expert);
        };
        const int32 w_column = gemm.first_column + column * (kPairedLanes<Config> ? 2 : 1);
        const mainloop::Weights w{{matrix(gemm.w[0]), matrix(gemm.w[1])},
                                  gemm.w_stride,
                                  gemm.w_columns,
                                  gemm.k,
                                  {w_column, w_column + gemm.second_block},
                                  {0, gemm.second_k},
                                  gemm.alternating_rows ? 2 : 1,
                                  {0, gemm.alternating_rows ? 1 : 0}};
        mainloop::Tokens x{static_cast<const uint16*>(gemm.x),
                           gemm.sorted_pairs + tile.first,
                           gemm.x_stride,
                           gemm.top_k,
                           tile.count,
                           row,
                           steps * kStep};
        if constexpr (Config::tokens != XeTokens::gather) x.rows += tile.first * gemm.x_stride;

        [[maybe_unused]] mainloop::Quant quant = gemm.quant;
        if constexpr (Quantized<Config>) quant.x_scale += int64(tile.first) * quant.x_blocks;

        typename MainLoop::Accumulator sums[MainLoop::kAccumulators];
        _Pragma("unroll(MainLoop::kUnroll)") for (int32 i = 0; i < MainLoop::kAccumulators; ++i)
          sums[i] = typename MainLoop::Accumulator{};
        if (!active) MainLoop::idle(w, x, place, k_begin, k_end);
        else if constexpr (kConverted<Config>) MainLoop::run(sums, w, x, quant, tile.expert, place, k_begin, k_end);
        else MainLoop::run(sums, w, x, place, k_begin, k_end);

        mainloop::reduce_slices<Config::k_slices, kSubGroups, kSimd>(slices, sums, slice, tile_index);
        if (!active || slice > 0) return;

        f32x8 acc[MainLoop::kAccumulators];
        if constexpr (kIntegerDpas<Config>) {
          mainloop::convert(mainloop::TokenLaneScales<Config>(w, x, quant, tile.expert, 0), sums, acc);
        } else {
          _Pragma("unroll(MainLoop::kUnroll)") for (int32 i = 0; i < MainLoop::kAccumulators; ++i) acc[i] = sums[i];
        }

        auto epilogue = make_epilogue(tile);
        if constexpr (kTokenLanes<Config>) {
          _Pragma("unroll(MainLoop::kUnroll)") for (int32 i = 0; i < MainLoop::kTokenBlocks; ++i) {
            epilogue.begin_row(row + i * kSimd + arch::lane_id());
            _Pragma("unroll(MainLoop::kUnroll)") for (int32 j = 0; j < MainLoop::kColumnBlocks; ++j)
              epilogue.token_lanes(column + 8 * j, acc[MainLoop::index(0, j, i)], acc[MainLoop::index(1, j, i)]);
          }
        } else {
          _Pragma("unroll(MainLoop::kUnroll)") for (int32 i = 0; i < MainLoop::kTokenBlocks; ++i) {
            epilogue.begin_rows(row + 8 * i);
            _Pragma("unroll(MainLoop::kUnroll)") for (int32 j = 0; j < MainLoop::kColumnBlocks; ++j) {
              if constexpr (kPairedLanes<Config>) {
                constexpr int32 kBlocks = MainLoop::kColumnBlocks;
                const f32x8 low = acc[MainLoop::index(2 * j / kBlocks, 2 * j % kBlocks, i)];
                const f32x8 high = acc[MainLoop::index((2 * j + 1) / kBlocks, (2 * j + 1) % kBlocks, i)];
                epilogue.column_lanes(column + kSimd * j, every_other<kSimd>(low, high, 0),
                                      every_other<kSimd>(low, high, 1));
              } else {
                epilogue.column_lanes(column + kSimd * j, acc[MainLoop::index(0, j, i)],
                                      acc[MainLoop::index(1, j, i)]);
              }
            }
          }
        }
      });
}

}  // namespace jitmoe::kernel

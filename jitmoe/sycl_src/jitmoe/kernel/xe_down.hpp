// SPDX-License-Identifier: MIT
// Second grouped GEMM with the routing weight inside (formula and tensors: kernel/xe_gemm_args.hpp).
//
// nd_range, SLM: kernel/xe_grouped_gemm.hpp. GRF: as xe_gate_up. A wide H is done in column chunks, each followed by its
// combine, to bound `partial`. Needs: partial_pitch a multiple of 8 and >= num_columns; inter_pitch a multiple of 32.
// Numerics: fp32 accumulation, fp32 product with the routing weight, stored in fp32.
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/kernel/xe_gemm_args.hpp>
#include <jitmoe/kernel/xe_grouped_gemm.hpp>

namespace jitmoe::kernel {

template <class Config> struct XeDownEpilogue {
  const XeDownArgs& args;
  const int32* pairs;  // of the row block
  int64 bias;          // position of the expert's biases
  int32 count;
  bool keep;        // weights as A: the lane's row exists
  int32 lane_pair;  // weights as B: the pair of the lane's row, -1 if there is none
  float weight;
  float* target;

  float weight_of(int32 pair) const {
    if constexpr (!Config::weighted) return 1.0f;
    return routing_weight<Config::topk_weights_dtype>(args.topk_weights, pair, args.top_k, args.topk_weights_row_stride);
  }

  // The bias of an output column of this chunk; those after H, whose results are dropped, get the last one's.
  float bias_of(int32 column) const {
    if constexpr (!Config::has_bias) return 0.0f;
    const int32 n = args.first_column + column;
    return arch::read_float<Config::bias_dtype>(args.w2_bias,
                                                bias + (n < args.hidden_size ? n : args.hidden_size - 1));
  }

  void begin_row(int32 lane_row) {
    keep = lane_row < count;
    const int32 pair = pairs[keep ? lane_row : count - 1];
    weight = weight_of(pair);
    target = static_cast<float*>(args.partial) + int64(pair) * args.partial_pitch;
  }

  void store_token_lanes(int32 column, f32x8 value) const {
    if constexpr (Config::has_bias) {
      _Pragma("unroll") for (int32 m = 0; m < 8; ++m) value[m] += bias_of(column + m);
    }
    if constexpr (Config::weighted) value *= weight;
    if (keep && column < args.partial_pitch) *reinterpret_cast<f32x8*>(target + column) = value;
  }

  void token_lanes(int32 column, f32x8 first, f32x8 second) const {
    store_token_lanes(column, first);
    store_token_lanes(column + Config::tile_columns, second);
  }

  // Lane m looks up row m; column_lanes passes the answers around.
  void begin_rows(int32 first_row) {
    const int32 row = first_row + arch::lane_id() % 8;
    lane_pair = row < count ? pairs[row] : -1;
    weight = row < count ? weight_of(lane_pair) : 0.0f;
  }

  void column_lanes(int32 column, f32x8 first, f32x8 second) const {
    const int32 n = column + arch::lane_id(), other = n + Config::tile_columns;
    first += bias_of(n);
    second += bias_of(other);
    _Pragma("unroll") for (int32 m = 0; m < 8; ++m) {
      const int32 pair = arch::shuffle(lane_pair, m);
      const float scale = Config::weighted ? arch::shuffle(weight, m) : 1.0f;
      if (pair < 0) continue;
      float* row = static_cast<float*>(args.partial) + int64(pair) * args.partial_pitch;
      if (n < args.partial_pitch) row[n] = first[m] * scale;
      if (other < args.partial_pitch) row[other] = second[m] * scale;
    }
  }
};

// `slices`: kSliceBytes of SLM.
template <class Config, class MainLoop = xe_main_loop_t<Config>, class Walk>
inline void down_tiles(const XeDownArgs& args, Walk& walk, JITMOE_LOCAL void* slices) {
  XeGroupedGemm gemm = grouped_gemm_of(args);
  gemm.x = args.inter;
  gemm.w[0] = gemm.w[1] = args.w2;
  gemm.x_stride = args.inter_pitch;
  gemm.k = args.intermediate_size;
  gemm.w_columns = args.hidden_size;
  gemm.first_column = args.first_column;
  gemm.second_block = Config::tile_columns;
  gemm.columns = args.num_columns;
  gemm.column_step = 2 * Config::tile_columns;
  if constexpr (Quantized<Config>) describe_quant<Config>(gemm, args);
  xe_grouped_gemm<Config, MainLoop>(gemm, walk, slices, [&](const scheduler::Tile& tile) {
    return XeDownEpilogue<Config>{args,       gemm.sorted_pairs + tile.first, int64(tile.expert) * args.hidden_size,
                                  tile.count, false,                          -1,
                                  0.0f,       nullptr};
  });
}

template <class Config, class MainLoop = xe_main_loop_t<Config>> inline void xe_down(const XeDownArgs& args) {
  auto walk = grid_walk();
  down_tiles<Config, MainLoop>(args, walk, arch::local_memory<kSliceBytes<Config, MainLoop>>());
}

}  // namespace jitmoe::kernel

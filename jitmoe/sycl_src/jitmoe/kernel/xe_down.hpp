// SPDX-License-Identifier: MIT
// Second grouped GEMM with the routing weight inside: partial[p] = v(p) * (inter[r] Wdown_e^T + bias_e)[columns]
//
//   r = sorted pair, p = sorted_pairs[r] = token * top_k + slot; columns = [first_column, first_column + num_columns)
//   v(p) = topk_weights[p]; 1 if the first GEMM has applied it (!weighted)
//   Rows go back to the order of the pairs here, for free: each lane stores its own token's columns.
//
// | tensor       | shape                  | dtype            | layout, owner
// | inter        | [pairs][inter_pitch]   | dtype            | zeros after column I; workspace
// | w2           | [E][H][I] or           | dtype            | nk: row stride w_stride; kn: [E][I][H]
// |              |                        |                  | Quantized: codes, w_scale, w_zero_point (mainloop/
// |              |                        |                  | xe_scales.hpp), and inter and x_scale of xe_quantize
// | w2_bias      | [E][H]                 | bias_dtype       | read if has_bias; caller's
// | topk_weights | [M][k]                 | topk_weights_dtype | row stride topk_weights_row_stride, caller's
// | sorted_pairs | [pairs]                | int32            | workspace
// | blocks       | [num_blocks][4]        | int32            | workspace; at most sub_groups_m * tile_rows rows each
// | partial      | [pairs][partial_pitch] | fp32             | workspace; rows of pairs without an expert stay unwritten
//
// nd_range, SLM: kernel/xe_grouped_gemm.hpp. GRF: as xe_gate_up. A wide H is done in column chunks, each followed by its
// combine, to bound `partial`. Needs: partial_pitch a multiple of 8 and >= num_columns; inter_pitch a multiple of 32.
// Numerics: fp32 accumulation, fp32 product with the routing weight, stored in fp32.
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/kernel/xe_grouped_gemm.hpp>

namespace jitmoe::kernel {

struct XeDownArgs {
  const void* inter;
  const void* w2;
  const void* w2_bias;
  const void* topk_weights;
  const void* sorted_pairs;
  const void* blocks;
  const void* num_blocks;
  void* partial;
  int32 hidden_size;
  int32 intermediate_size;
  int32 top_k;
  int32 first_column;
  int32 num_columns;
  int32 partial_pitch;
  int64 inter_pitch;
  int64 w_expert_stride;
  int64 w_stride;
  int64 topk_weights_row_stride;
  // Of quantized weights.
  const void* w_scale = nullptr;
  const void* w_zero_point = nullptr;
  const void* x_scale = nullptr;
  int32 block_n = 0;
  int32 x_blocks = 0;
  int64 scale_expert_stride = 0;
  int64 scale_n_stride = 0;
  int64 scale_k_stride = 0;
  int64 zero_expert_stride = 0;
  int64 zero_n_stride = 0;
  int64 zero_k_stride = 0;
};

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

template <class Config, class MainLoop = xe_main_loop_t<Config>> inline void xe_down(const XeDownArgs& args) {
  XeGroupedGemm gemm{};
  gemm.x = args.inter;
  gemm.sorted_pairs = static_cast<const int32*>(args.sorted_pairs);
  gemm.blocks = static_cast<const int32*>(args.blocks);
  gemm.num_blocks = static_cast<const int32*>(args.num_blocks);
  gemm.w[0] = gemm.w[1] = args.w2;
  gemm.x_stride = args.inter_pitch;
  gemm.w_expert_stride = args.w_expert_stride;
  gemm.w_stride = args.w_stride;
  gemm.top_k = args.top_k;
  gemm.k = args.intermediate_size;
  gemm.w_columns = args.hidden_size;
  gemm.first_column = args.first_column;
  gemm.second_block = Config::tile_columns;
  gemm.columns = args.num_columns;
  gemm.column_step = 2 * Config::tile_columns;
  if constexpr (Quantized<Config>) describe_quant<Config>(gemm, args);
  xe_grouped_gemm<Config, MainLoop>(gemm, [&](const scheduler::Tile& tile) {
    return XeDownEpilogue<Config>{args,       gemm.sorted_pairs + tile.first, int64(tile.expert) * args.hidden_size,
                                  tile.count, false,                          -1,
                                  0.0f,       nullptr};
  });
}

}  // namespace jitmoe::kernel

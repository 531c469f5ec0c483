// SPDX-License-Identifier: MIT
// First grouped GEMM with the activation inside (formula and tensors: kernel/xe_gemm_args.hpp).
//
// nd_range, SLM: kernel/xe_grouped_gemm.hpp. GRF: 256 if tile_rows * 2 * tile_columns >= 2048 (the spec's large_grf).
// Needs: inter_pitch a multiple of 32; operand alignment as arch/choices.hpp says for Config::weights and tokens.
// Numerics: fp32 accumulation over K in steps of 16 (the hardware's order inside), activation in fp32, one rounding.
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/epilogue/xe_activation.hpp>
#include <jitmoe/kernel/xe_gemm_args.hpp>
#include <jitmoe/kernel/xe_grouped_gemm.hpp>

namespace jitmoe::kernel {

template <class Config> struct XeGateUpEpilogue {
  static constexpr bool kUngated = Config::gate_up == GateUp::ungated;
  static constexpr bool kWeighted = Config::router_weight_on_input;

  const XeGateUpArgs& args;
  using Inter = element_t<kInterDtype<Config>>;
  static constexpr bool kFloats = kInterDtype<Config> == DType::fp32;

  Inter* rows;         // of the row block
  const int32* pairs;  // of the row block
  int64 bias;          // position of the expert's biases
  int32 count;
  int32 row;
  float weight;        // of the lane's row; weights as B: of row + lane % 8

  XeGateUpEpilogue(const XeGateUpArgs& from, const scheduler::Tile& tile)
      : args(from),
        rows(static_cast<Inter*>(from.inter) + int64(tile.first) * from.inter_pitch),
        pairs(static_cast<const int32*>(from.sorted_pairs) + tile.first),
        bias(int64(tile.expert) * (kUngated ? 1 : 2) * from.intermediate_size),
        count(tile.count),
        row(0),
        weight(1.0f) {}

  void look_up_weight(int32 lane_row) {
    if constexpr (kWeighted) {
      const int32 pair = pairs[lane_row < count ? lane_row : count - 1];
      weight = routing_weight<Config::topk_weights_dtype>(args.topk_weights, pair, args.top_k,
                                                          args.topk_weights_row_stride);
    }
  }
  void begin_row(int32 lane_row) {
    row = lane_row;
    look_up_weight(lane_row);
  }
  void begin_rows(int32 first_row) {
    row = first_row;
    look_up_weight(first_row + arch::lane_id() % 8);
  }

  // The bias of half q of column n; columns after I, whose results are dropped, get the last one's.
  float bias_of(int32 n, int32 q) const {
    if constexpr (!Config::has_bias) return 0.0f;
    const int32 inside = n < args.intermediate_size ? n : args.intermediate_size - 1;
    return arch::read_float<Config::bias_dtype>(
        args.w1_bias, bias + epilogue::w1_row<Config::gate_up>(inside, q, args.intermediate_size));
  }

  float result(float gate, float up, float scale, float gate_bias, float up_bias) const {
    if constexpr (kWeighted) gate *= scale, up *= scale;
    if constexpr (Config::has_bias) gate += gate_bias, up += up_bias;
    return epilogue::xe_gated<Config>(gate, up, {args.swiglu_alpha, args.swiglu_limit});
  }

  void store_token_lanes(int32 column, f32x8 gate, f32x8 up) const {
    if (column >= args.inter_pitch) return;
    const int32 kept = args.intermediate_size - column;  // of the eight; the zeros after I are the K padding of xe_down
    const auto value = [&](int32 m) {
      return result(gate[m], up[m], weight, bias_of(column + m, 0), kUngated ? 0.0f : bias_of(column + m, 1));
    };
    if constexpr (kFloats) {
      _Pragma("unroll") for (int32 m = 0; m < 8; ++m) {
        const float one = m < kept ? value(m) : 0.0f;
        if (row < count) rows[int64(row) * args.inter_pitch + column + m] = one;
      }
      return;
    }
    arch::u32x4 packed;
    _Pragma("unroll") for (int32 i = 0; i < 4; ++i) {
      const float pair[2] = {value(2 * i), value(2 * i + 1)};
      packed[i] = arch::narrow_pair<Config::emulated, Config::dtype>(pair[0], pair[1]);
      const int32 left = kept - 2 * i;
      packed[i] &= left >= 2 ? 0xffffffffu : left == 1 ? 0xffffu : 0u;
    }
    if (row < count) *reinterpret_cast<arch::u32x4*>(rows + int64(row) * args.inter_pitch + column) = packed;
  }

  void token_lanes(int32 column, f32x8 first, f32x8 second) const {
    store_token_lanes(column, first, second);
    if constexpr (kUngated) store_token_lanes(column + Config::tile_columns, second, second);
  }

  void store_column_lanes(int32 column, f32x8 gate, f32x8 up) const {
    if (column >= args.inter_pitch) return;
    const int32 n = column + arch::lane_id();
    const bool keep = n < args.intermediate_size;
    const float gate_bias = bias_of(n, 0), up_bias = kUngated ? 0.0f : bias_of(n, 1);
    arch::i16x8 narrow;
    _Pragma("unroll") for (int32 m = 0; m < 8; ++m) {
      const float scale = kWeighted ? arch::shuffle(weight, m) : 1.0f;
      const float value = result(gate[m], up[m], scale, gate_bias, up_bias);
      if constexpr (kFloats) {
        if (row + m < count) rows[int64(row + m) * args.inter_pitch + n] = keep ? value : 0.0f;
        continue;
      }
      narrow[m] = arch::narrow<Config::emulated, Config::dtype>(keep ? value : 0.0f);
    }
    if constexpr (kFloats) {
      return;
    } else if constexpr (Config::simd == 16) {
      const int32 pitch = args.inter_pitch * 2;
      const arch::StorePayload<Config::emulated> block(arch::Surface{rows, pitch, count, pitch}, column, row);
      arch::store(block, 0, 0, narrow);
    } else {
      _Pragma("unroll") for (int32 m = 0; m < 8; ++m)
        if (row + m < count) rows[int64(row + m) * args.inter_pitch + n] = uint16(narrow[m]);
    }
  }

  void column_lanes(int32 column, f32x8 first, f32x8 second) const {
    store_column_lanes(column, first, second);
    if constexpr (kUngated) store_column_lanes(column + Config::tile_columns, second, second);
  }
};

// `slices`: kSliceBytes of SLM.
template <class Config, class MainLoop = xe_main_loop_t<Config>, class Walk>
inline void gate_up_tiles(const XeGateUpArgs& args, Walk& walk, JITMOE_LOCAL void* slices) {
  constexpr bool kUngated = Config::gate_up == GateUp::ungated, kSeparate = Config::gate_up == GateUp::separate;
  constexpr bool kInterleaved = Config::gate_up == GateUp::interleaved;
  constexpr bool kAlternatingRows = kInterleaved && Config::layout == Layout::nk;
  XeGroupedGemm gemm = grouped_gemm_of(args);
  gemm.x = Config::tokens == XeTokens::gather ? args.hidden_states : args.packed_x;
  gemm.w[0] = args.w1;
  gemm.w[1] = kSeparate ? args.w1_up : args.w1;
  gemm.x_stride = args.x_stride;
  if constexpr (kAlternatingRows) gemm.w_stride *= 2;
  gemm.k = args.hidden_size;
  gemm.w_columns = kUngated || kSeparate || kAlternatingRows ? args.intermediate_size : 2 * args.intermediate_size;
  gemm.first_column = 0;
  gemm.second_block = Config::gate_up == GateUp::concatenated ? args.intermediate_size
                      : kUngated || kPairedLanes<Config>      ? Config::tile_columns
                                                              : 0;
  gemm.second_k = kAlternatingRows ? int32(args.w_stride) : 0;
  gemm.columns = args.inter_pitch;
  gemm.column_step = kUngated ? 2 * Config::tile_columns : Config::tile_columns;
  if constexpr (Quantized<Config>) {
    gemm.alternating_rows = kAlternatingRows;
    describe_quant<Config>(gemm, args);
  }
  xe_grouped_gemm<Config, MainLoop>(
      gemm, walk, slices, [&](const scheduler::Tile& tile) { return XeGateUpEpilogue<Config>(args, tile); });
}

template <class Config, class MainLoop = xe_main_loop_t<Config>> inline void xe_gate_up(const XeGateUpArgs& args) {
  auto walk = grid_walk();
  gate_up_tiles<Config, MainLoop>(args, walk, arch::local_memory<kSliceBytes<Config, MainLoop>>());
}

}  // namespace jitmoe::kernel

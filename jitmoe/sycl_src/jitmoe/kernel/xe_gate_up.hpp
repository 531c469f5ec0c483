// SPDX-License-Identifier: MIT
// First grouped GEMM with the activation inside: inter[r] = act(x[t(r)] Wgate_e^T) * (x[t(r)] Wup_e^T)
//
//   r = sorted pair (rows of one expert are neighbours), t(r) = sorted_pairs[r] / top_k, e = expert of r's row block
//
// | tensor        | shape               | dtype  | layout, owner
// | hidden_states | [M][H]              | dtype  | row stride x_stride; read if tokens == gather; caller's
// | packed_x      | [pairs][x_stride]   | dtype  | rows by sorted pair, zeros after H; read otherwise; workspace
// | w1            | [E][2I][H] or       | dtype  | nk: row stride w_stride; kn: [E][H][2I]; gate 0..I-1, up I..2I-1
// | sorted_pairs  | [pairs]             | int32  | workspace
// | blocks        | [num_blocks][4]     | int32  | workspace; at most sub_groups_m * tile_rows rows each
// | inter         | [pairs][inter_pitch]| dtype  | workspace; columns I..inter_pitch-1 become zeros
//
// nd_range, SLM: kernel/xe_grouped_gemm.hpp. GRF: 256 if tile_rows * 2 * tile_columns >= 2048 (the spec's large_grf).
// Needs: inter_pitch a multiple of 32; operand alignment as arch/choices.hpp says for Config::weights and tokens.
// Numerics: fp32 accumulation over K in steps of 16 (the hardware's order inside), activation in fp32, one rounding.
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/epilogue/xe_activation.hpp>
#include <jitmoe/kernel/xe_grouped_gemm.hpp>

namespace jitmoe::kernel {

struct XeGateUpArgs {
  const void* hidden_states;
  const void* packed_x;
  const void* w1;
  const void* sorted_pairs;
  const void* blocks;
  const void* num_blocks;
  void* inter;
  int32 hidden_size;
  int32 intermediate_size;
  int32 top_k;
  int32 inter_pitch;
  int64 x_stride;
  int64 w_expert_stride;
  int64 w_stride;
};

template <class Config> struct XeGateUpEpilogue {
  uint16* rows;  // of the row block
  int32 count;
  int32 intermediate_size;
  int32 pitch;
  int32 row;

  static float gated(float gate, float up) { return epilogue::xe_activate<Config::activation>(gate) * up; }

  void begin_row(int32 lane_row) { row = lane_row; }
  void begin_rows(int32 first_row) { row = first_row; }

  void token_lanes(int32 column, f32x8 gate, f32x8 up) const {
    if (column >= pitch) return;
    const int32 kept = intermediate_size - column;  // of the eight; the zeros after I are the K padding of xe_down
    arch::u32x4 packed;
    _Pragma("unroll") for (int32 i = 0; i < 4; ++i) {
      packed[i] = arch::narrow_pair<Config::emulated, Config::dtype>(gated(gate[2 * i], up[2 * i]),
                                                                     gated(gate[2 * i + 1], up[2 * i + 1]));
      const int32 left = kept - 2 * i;
      packed[i] &= left >= 2 ? 0xffffffffu : left == 1 ? 0xffffu : 0u;
    }
    if (row < count) *reinterpret_cast<arch::u32x4*>(rows + int64(row) * pitch + column) = packed;
  }

  void column_lanes(int32 column, f32x8 gate, f32x8 up) const {
    if (column >= pitch) return;
    const bool keep = column + arch::lane_id() < intermediate_size;
    arch::i16x8 narrow;
    _Pragma("unroll") for (int32 m = 0; m < 8; ++m)
      narrow[m] = arch::narrow<Config::emulated, Config::dtype>(keep ? gated(gate[m], up[m]) : 0.0f);
    if constexpr (Config::simd == 16) {
      const arch::StorePayload<Config::emulated> block(arch::Surface{rows, pitch * 2, count, pitch * 2}, column,
                                                       row);
      arch::store(block, 0, 0, narrow);
    } else {
      _Pragma("unroll") for (int32 m = 0; m < 8; ++m)
        if (row + m < count) rows[int64(row + m) * pitch + column + arch::lane_id()] = uint16(narrow[m]);
    }
  }
};

template <class Config> inline void xe_gate_up(const XeGateUpArgs& args) {
  XeGroupedGemm gemm{};
  gemm.x = Config::tokens == XeTokens::gather ? args.hidden_states : args.packed_x;
  gemm.sorted_pairs = static_cast<const int32*>(args.sorted_pairs);
  gemm.blocks = static_cast<const int32*>(args.blocks);
  gemm.num_blocks = static_cast<const int32*>(args.num_blocks);
  gemm.w = args.w1;
  gemm.x_stride = args.x_stride;
  gemm.w_expert_stride = args.w_expert_stride;
  gemm.w_stride = args.w_stride;
  gemm.top_k = args.top_k;
  gemm.k = args.hidden_size;
  gemm.w_columns = 2 * args.intermediate_size;
  gemm.first_column = 0;
  gemm.second_block = args.intermediate_size;
  gemm.columns = args.inter_pitch;
  gemm.column_step = Config::tile_columns;
  auto* inter = static_cast<uint16*>(args.inter);
  xe_grouped_gemm<Config>(gemm, [&](const scheduler::Tile& tile) {
    return XeGateUpEpilogue<Config>{inter + int64(tile.first) * args.inter_pitch, tile.count, args.intermediate_size,
                                    args.inter_pitch, 0};
  });
}

}  // namespace jitmoe::kernel

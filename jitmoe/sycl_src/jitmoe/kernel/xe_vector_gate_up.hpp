// SPDX-License-Identifier: MIT
// First grouped GEMM with the activation, without dpas: tensors and formula as kernel/xe_gate_up.hpp, tokens gathered
// from hidden_states; nd_range and numerics as mainloop/xe_vector.hpp. Row blocks hold at most tile_rows rows.
#pragma once

#include <jitmoe/epilogue/xe_activation.hpp>
#include <jitmoe/mainloop/xe_vector.hpp>

namespace jitmoe::kernel {

struct XeVectorGateUpArgs {
  const void* hidden_states;
  const void* w1;
  const void* sorted_pairs;
  const void* blocks;
  const void* num_blocks;
  void* inter;
  int32 hidden_size;
  int32 intermediate_size;
  int32 top_k;
  int32 inter_pitch;
  int64 x_row_stride;
  int64 w_expert_stride;
  int64 w_stride;
};

template <class Config> inline void xe_vector_gate_up(const XeVectorGateUpArgs& args) {
  using MainLoop = mainloop::XeVector<Config>;
  using Element = typename MainLoop::Element;
  constexpr int32 kRows = Config::tile_rows, kColumns = Config::sub_groups * Config::simd;
  const auto item = nd_item<1>();
  const auto* pairs = static_cast<const int32*>(args.sorted_pairs);
  const int32 num_column_tiles = (args.intermediate_size + kColumns - 1) / kColumns;

  scheduler::for_each_tile(
      static_cast<const int32*>(args.blocks), *static_cast<const int32*>(args.num_blocks), num_column_tiles,
      int32(item.get_group(0)), int32(item.get_group_range(0)), [&](const scheduler::Tile& tile) {
        const int32 n = tile.column * kColumns + int32(item.get_local_id(0));
        const int32 safe = n < args.intermediate_size ? n : args.intermediate_size - 1;
        const Element* rows[kRows];
        _Pragma("unroll") for (int32 m = 0; m < kRows; ++m) {
          const int32 token = pairs[tile.first + (m < tile.count ? m : tile.count - 1)] / args.top_k;
          rows[m] = static_cast<const Element*>(args.hidden_states) + token * args.x_row_stride;
        }
        float acc[2][kRows] = {};
        MainLoop::run(acc, static_cast<const Element*>(args.w1) + tile.expert * args.w_expert_stride, args.w_stride,
                      {safe, args.intermediate_size + safe}, rows, args.hidden_size);
        auto* inter = static_cast<Element*>(args.inter) + int64(tile.first) * args.inter_pitch;
        _Pragma("unroll") for (int32 m = 0; m < kRows; ++m)
          if (m < tile.count && n < args.intermediate_size)
            inter[int64(m) * args.inter_pitch + n] = arch::narrow<Config::emulated, Config::dtype>(
                epilogue::xe_activate<Config::activation>(acc[0][m]) * acc[1][m]);
      });
}

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// First GEMM of the MoE layer with its activation, on CPUs:
//
//   inter[p][i] = round(act(sum_h x[t(p)][h] * w1[e][i][h]) * sum_h x[t(p)][h] * w1[e][I + i][h])
//
// for the pairs p of one block (tokens of one expert e, see cpu/block.hpp) and a range of rows i.
//
// | tensor        | shape                | dtype          | layout, owner
// | hidden_states | [M][H]               | dtype          | row stride x_row_stride, dense rows; caller's
// | w1            | [E][2I][H]           | dtype          | expert stride, and w1_stride between rows (nk) or between
// |               |                      |                | columns of the dense dimension (kn); caller's
// | sorted_pairs  | [M * k]              | int32          | workspace, from route_serial
// | blocks        | [max_blocks][4]      | int32          | workspace, from route_serial
// | num_blocks    | [1]                  | int32          | workspace, from route_serial
// | inter         | [M * k][I]           | units          | workspace, layout of cpu/block.hpp
//
// nd_range: (max_blocks, row ranges of n_block rows), work-groups of 1 work-item.
// Local memory: two result tiles [kMaxBlockTokens][kMaxRows] fp32. On the stack: packed tokens, one panel of weights.
// Numerics: fp32 accumulation in a fixed order; activation and product in fp32; rounded once to dtype.
#pragma once

#include <jitmoe/cpu/block.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/entry.hpp>
#include <jitmoe/epilogue/activation.hpp>

namespace jitmoe::kernel {

struct CpuGateUpArgs {
  const void* hidden_states;
  const void* w1;
  const void* sorted_pairs;
  const void* blocks;
  const void* num_blocks;
  void* inter;
  int32 top_k;
  int32 hidden_size;
  int32 intermediate_size;
  int32 n_block;       // rows of one range, at most kMaxRows and a multiple of 32
  int32 inter_stride;  // units
  int64 x_row_stride;
  int64 w1_expert_stride;
  int64 w1_stride;
};

namespace gate_up {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

constexpr int kMaxRows = 192;  // per range; plan/cpu.py names the same number

struct Tiles {
  float gate[kMaxBlockTokens * kMaxRows];
  float up[kMaxBlockTokens * kMaxRows];
};

// row[i] = round(act(gate[i]) * up[i]) for i < num_i, zero up to the next multiple of kInterGranule.
template <class S, Activation activation>
inline void store_row(const float* gate, const float* up, int num_i, uint32* row) {
  constexpr int lanes = S::lanes;
  for (int i = 0; i < num_i; i += lanes) {
    const auto u = load<typename S::floats>(up + i);
    auto value = epilogue::activate<activation, lanes>(load<typename S::floats>(gate + i)) * u;
    if (i + lanes > num_i) {
#pragma unroll
      for (int l = 0; l < lanes; ++l)
        if (i + l >= num_i) value[l] = 0.0f;
    }
    if constexpr (S::pairs) store_floats<DType::bf16, lanes>(reinterpret_cast<uint16*>(row) + i, value);
    else store(row + i, round_to<S::dtype, lanes>(value));
  }
  const int end = int(align_up(num_i, kInterGranule));
  for (int i = int(align_up(num_i, lanes)); i < end; i += lanes) {
    if constexpr (S::pairs) store_floats<DType::bf16, lanes>(reinterpret_cast<uint16*>(row) + i, 0.0f);
    else store(row + i, typename S::floats(0.0f));
  }
}

}  // namespace gate_up

template <class Config> inline void cpu_gate_up(const CpuGateUpArgs& args) {
  using namespace gate_up;
  using S = Simd<Config::isa, Config::dtype>;
  using element = typename S::element;
  auto* const s = (Tiles*)scratch<sizeof(Tiles)>();
  PanelScratch<S> panel;

  // Indices.
  const auto item = nd_item<2>();
  const int32 block_idx = int32(item.get_group(0));
  if (block_idx >= *static_cast<const int32*>(args.num_blocks)) return;
  const Block block = block_at(args.blocks, block_idx);
  const int32 i0 = int32(item.get_group(1)) * args.n_block;
  const int32 left = args.intermediate_size - i0;
  const int32 rows = left < args.n_block ? left : args.n_block;
  const int64 hidden = args.hidden_size;

  // Tensors.
  const auto* pairs = static_cast<const int32*>(args.sorted_pairs) + block.first;
  const element* tokens[kMaxBlockTokens];
  for (int t = 0; t < block.tokens; ++t)
    tokens[t] = static_cast<const element*>(args.hidden_states) + pairs[t] / args.top_k * args.x_row_stride;
  const int64 to_row = Config::w1_layout == Layout::nk ? args.w1_stride : 1;
  const auto* w = static_cast<const element*>(args.w1) + block.expert * args.w1_expert_stride + i0 * to_row;
  const WeightRange<S> gate{w, args.w1_stride, rows};
  const WeightRange<S> up{w + args.intermediate_size * to_row, args.w1_stride, rows};

  // GEMM.
  if (uses_rows_form<Config::w1_layout>(block.tokens)) {
#pragma clang loop unroll(disable)
    for (int half = 0; half < 2; ++half)
      rows_form<S, S>(half ? up.base : gate.base, args.w1_stride, rows, tokens, block.tokens, hidden,
                      half ? s->up : s->gate, kMaxRows);
  } else {
    const int64 num_units = ceil_div(hidden, S::k_per_unit);
    for (int64 u0 = 0; u0 < num_units; u0 += kPanelUnits) {
      const int units = int(num_units - u0 < kPanelUnits ? num_units - u0 : kPanelUnits);
      // After the last units come the first ones again: the next range of this block is likely to run here.
      const int64 ahead = u0 + kPanelUnits < num_units ? kPanelUnits : -u0;
      pack_tokens<S>(tokens, block.tokens, hidden, u0, units, ahead, panel.tokens);
      const int64 next_k = kPanelUnits * S::k_per_unit * (Config::w1_layout == Layout::nk ? 1 : args.w1_stride);
      const WeightRange<S> next_gate{gate.base + next_k, gate.stride, rows};
#pragma clang loop unroll(disable)
      for (int half = 0; half < 2; ++half)
        panel_form<S, Config::w1_layout>(half ? up : gate, half ? next_gate : up, block.tokens, hidden, u0, units,
                                         half ? s->up : s->gate, kMaxRows, &panel);
    }
  }

  // Epilogue and store.
  auto* inter = static_cast<uint32*>(args.inter) + int64(block.first) * args.inter_stride + i0 / S::k_per_unit;
  for (int t = 0; t < block.tokens; ++t)
    store_row<S, Config::activation>(s->gate + t * kMaxRows, s->up + t * kMaxRows, rows,
                                     inter + int64(t) * args.inter_stride);
}

}  // namespace jitmoe::kernel

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
// | inter         | [slots][I]           | units          | workspace, layout of cpu/block.hpp
//
// nd_range: (row ranges of n_block rows, max_blocks), work-groups of 1 work-item. Blocks of one expert are neighbours
// in the fastest dimension, so they find the weights in the cache.
// Local memory: two result tiles [kMaxRows][64] fp32, the token panel [kPanelUnits][64], staged weights.
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
  int32 n_block;  // rows of one range, at most kMaxRows and a multiple of 2
  int64 x_row_stride;
  int64 w1_expert_stride;
  int64 w1_stride;
};

namespace gate_up {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

constexpr int kMaxRows = 96;      // per range; plan/cpu.py names the same number
constexpr int kPanelUnits = 256;  // units of K packed at a time: 64 KiB

struct Scratch {
  float gate[kMaxRows * kMaxBlockTokens];
  float up[kMaxRows * kMaxBlockTokens];
  uint32 panel[kPanelUnits * kMaxBlockTokens];
  uint32 staged[8 * kPanelUnits];
};

// gate[i] = act(gate[i]) * up[i] over `count` floats (a multiple of the vector length).
template <class S, Activation activation> inline void apply_activation(float* gate, const float* up, int count) {
  for (int i = 0; i < count; i += S::lanes) {
    const auto g = load<typename S::floats>(gate + i);
    const auto u = load<typename S::floats>(up + i);
    store(gate + i, epilogue::activate<activation, S::lanes>(g) * u);
  }
}

// The unit that holds value(i) and, in pairs, value(i + 1); what lies past I is zero.
template <class S, class Value> inline uint32 make_unit(int32 i, int32 i_end, Value value) {
  if constexpr (S::pairs) {
    const uint32 low = float_to_bf16(value(i));
    return i + 1 < i_end ? low | uint32(float_to_bf16(value(i + 1))) << 16 : low;
  } else {
    (void)i_end;
    return bit_cast<uint32>(to_float<S::dtype>(from_float<S::dtype>(value(i))));
  }
}

}  // namespace gate_up

template <class Config> inline void cpu_gate_up(const CpuGateUpArgs& args) {
  using namespace gate_up;
  using S = Simd<Config::isa, Config::dtype>;
  using element = typename S::element;
  auto* const s = (Scratch*)scratch<sizeof(Scratch)>();

  // Indices.
  const auto item = nd_item<2>();
  const int32 block_idx = int32(item.get_group(1));
  if (block_idx >= *static_cast<const int32*>(args.num_blocks)) return;
  const Block block = block_at(args.blocks, block_idx);
  const int32 i0 = int32(item.get_group(0)) * args.n_block;
  const int32 left = args.intermediate_size - i0;
  const int32 rows = left < args.n_block ? left : args.n_block;
  const int64 hidden = args.hidden_size;

  // Tensors.
  const auto* pairs = static_cast<const int32*>(args.sorted_pairs) + block.first;
  const element* tokens[kMaxBlockTokens];
  for (int t = 0; t < block.tokens; ++t)
    tokens[t] = static_cast<const element*>(args.hidden_states) + pairs[t] / args.top_k * args.x_row_stride;
  const auto* w = static_cast<const element*>(args.w1) + block.expert * args.w1_expert_stride;
  const int64 to_row = Config::w1_layout == Layout::nk ? args.w1_stride : 1;
  const auto* w_gate = w + i0 * to_row;
  const auto* w_up = w_gate + args.intermediate_size * to_row;

  // GEMM: gate and up as [rows][padded] (lanes form) or [tokens][kMaxRows].
  const int padded = padded_tokens<S>(block.tokens);
  bool lanes_are_tokens = false;
  if constexpr (Config::w1_layout == Layout::nk) {
    lanes_are_tokens = block.tokens > kRowsFormTokens;
    if (lanes_are_tokens) {
      const int64 num_units = ceil_div(hidden, S::k_per_unit);
      for (int64 u0 = 0; u0 < num_units; u0 += kPanelUnits) {
        const int64 units = num_units - u0 < kPanelUnits ? num_units - u0 : kPanelUnits;
        pack_panel<S>(tokens, block.tokens, padded, hidden, u0, units, s->panel);
        for (int half = 0; half < 2; ++half)
          lanes_form<S>(half ? w_up : w_gate, args.w1_stride, rows, s->panel, padded, hidden, u0, units,
                        half ? s->up : s->gate, padded, s->staged);
      }
    } else {
      for (int half = 0; half < 2; ++half)
        rows_form<S, S>(half ? w_up : w_gate, args.w1_stride, rows, tokens, block.tokens, hidden,
                        half ? s->up : s->gate, kMaxRows);
    }
  } else {
    for (int half = 0; half < 2; ++half)
      columns_form<S, S>(half ? w_up : w_gate, args.w1_stride, rows, tokens, block.tokens, hidden,
                         half ? s->up : s->gate, kMaxRows);
  }

  // Epilogue.
  const int fast = lanes_are_tokens ? padded : kMaxRows;
  const int slow = lanes_are_tokens ? rows : block.tokens;
  apply_activation<S, Config::activation>(s->gate, s->up, slow * fast);

  // Store.
  const int64 inter_units = ceil_div(args.intermediate_size, S::k_per_unit);
  auto* inter = static_cast<uint32*>(args.inter) + block.slot * inter_units;
  const int64 first_unit = i0 / S::k_per_unit;
  const int64 stride_i = lanes_are_tokens ? padded : 1;
  const int64 stride_t = lanes_are_tokens ? 1 : kMaxRows;
  if (inter_is_panel<Config::w2_layout>(block.tokens)) {
    for (int32 i = 0; i < rows; i += S::k_per_unit) {
      uint32* row = inter + (first_unit + i / S::k_per_unit) * padded;
      if (lanes_are_tokens) {
        for (int t = 0; t < padded; t += S::lanes) {
          const auto value = load<typename S::floats>(s->gate + i * padded + t);
          if constexpr (S::pairs) {
            auto unit = bf16_bits<S::lanes>(value);
            if (i + 1 < rows)
              unit |= bf16_bits<S::lanes>(load<typename S::floats>(s->gate + (i + 1) * padded + t)) << 16;
            store(row + t, unit);
          } else {
            store(row + t, round_to<Config::dtype, S::lanes>(value));
          }
        }
      } else {
        for (int t = 0; t < padded; ++t)
          row[t] = t < block.tokens
                       ? make_unit<S>(i, rows, [&](int32 at) { return s->gate[at * stride_i + t * stride_t]; })
                       : 0u;
      }
    }
  } else {
    for (int t = 0; t < block.tokens; ++t)
      for (int32 i = 0; i < rows; i += S::k_per_unit)
        inter[t * inter_units + first_unit + i / S::k_per_unit] =
            make_unit<S>(i, rows, [&](int32 at) { return s->gate[at * stride_i + t * stride_t]; });
  }
}

}  // namespace jitmoe::kernel

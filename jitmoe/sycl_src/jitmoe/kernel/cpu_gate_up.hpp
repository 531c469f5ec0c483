// SPDX-License-Identifier: MIT
// First GEMM of the MoE layer with its activation, on CPUs:
//
//   inter[p][i] = round(act(sum_h x[t(p)][h] * w1[e][i][h]) * sum_h x[t(p)][h] * w1[e][I + i][h])
//
// for all pairs p of one expert e and a range of rows i.
//
// | tensor        | shape                | dtype          | layout, owner
// | hidden_states | [M][H]               | dtype          | row stride x_row_stride, dense rows; caller's
// | w1            | [E][2I][H]           | dtype          | expert stride, and w1_stride between rows (nk) or between
// |               |                      |                | columns of the dense dimension (kn); caller's
// | topk_ids, expert_map                 |                | read if few_pairs; caller's
// | sorted_pairs, groups                 |                | read otherwise; workspace, from route_serial
// | inter         | [slots][I]           | units          | workspace, layout of cpu/routing.hpp
//
// nd_range: (max_groups * num_ranges), work-groups of 1 work-item; ranges of n_block rows of one group are neighbours,
// so that a core's work-items are one stream of weights.
// Local memory: two result tiles [kMaxRows][64] fp32, the token panel [kPanelUnits][64], staged weights.
// Numerics: fp32 accumulation in a fixed order; activation and product in fp32; rounded once to dtype.
#pragma once

#include <jitmoe/cpu/routing.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/cpu/tiles.hpp>
#include <jitmoe/entry.hpp>
#include <jitmoe/epilogue/activation.hpp>

namespace jitmoe::kernel {

struct CpuGateUpArgs {
  const void* hidden_states;
  const void* w1;
  const void* topk_ids;
  const void* expert_map;
  const void* sorted_pairs;
  const void* groups;
  void* inter;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 hidden_size;
  int32 intermediate_size;
  int32 n_block;  // rows of one range: a multiple of 16, at most kMaxRows
  int32 num_ranges;
  int64 x_row_stride;
  int64 w1_expert_stride;
  int64 w1_stride;
  int64 topk_ids_row_stride;
};

namespace gate_up {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

constexpr int kMaxRows = 96;      // per range; plan/cpu.py names the same number
constexpr int kPanelUnits = 128;  // units of K packed at a time: 32 KiB, two thirds of an L1 cache

struct Scratch {
  float gate[kMaxRows * kMaxBlockTokens];
  float up[kMaxRows * kMaxBlockTokens];
  uint32 panel[kPanelUnits * kMaxBlockTokens];
  uint32 staged[8 * kPanelUnits];
  FewPairs few;
};

// gate[i] = act(gate[i]) * up[i] over `count` floats (a multiple of the vector length).
template <class S, Activation activation> inline void apply_activation(float* gate, const float* up, int count) {
  for (int i = 0; i < count; i += S::lanes) {
    const auto g = load<typename S::floats>(gate + i);
    const auto u = load<typename S::floats>(up + i);
    store(gate + i, epilogue::activate<activation, S::lanes>(g) * u);
  }
}

// Stores tile[i][padded] as panel[unit][padded]; the last unit of an odd number of rows ends in zero.
template <class S> inline void store_panel(const float* tile, int rows, int padded, uint32* panel) {
  for (int i = 0; i < rows; i += S::k_per_unit)
    for (int t = 0; t < padded; t += S::lanes) {
      const auto value = load<typename S::floats>(tile + i * padded + t);
      typename S::units unit;
      if constexpr (S::pairs) {
        unit = bf16_bits<S::lanes>(value);
        if (i + 1 < rows) unit |= bf16_bits<S::lanes>(load<typename S::floats>(tile + (i + 1) * padded + t)) << 16;
      } else {
        unit = bit_cast<typename S::units>(round_to<S::dtype, S::lanes>(value));
      }
      store(panel + i / S::k_per_unit * padded + t, unit);
    }
}

// Stores tile[t][stride] as rows of `row_units` units; whole vectors, so up to lanes - 1 junk elements follow a range.
template <class S>
inline void store_rows(const float* tile, int tokens, int rows, int stride, uint32* inter, int64 row_units) {
  for (int t = 0; t < tokens; ++t)
    for (int i = 0; i < rows; i += S::lanes) {
      const auto value = load<typename S::floats>(tile + t * stride + i);
      if constexpr (S::pairs)
        store_floats<DType::bf16, S::lanes>(reinterpret_cast<uint16*>(inter + t * row_units) + i, value);
      else
        store(inter + t * row_units + i, round_to<S::dtype, S::lanes>(value));
    }
}

// Exchanges the dimensions of a tile, for weights whose two layouts differ: to[c * to_stride + r] = from[r][c].
inline void transpose_tile(const float* from, int num_rows, int from_stride, int num_columns, float* to,
                           int to_stride) {
  for (int r = 0; r < num_rows; ++r)
#pragma clang loop unroll(disable)
    for (int c = 0; c < num_columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
}

}  // namespace gate_up

template <class Config> inline void cpu_gate_up(const CpuGateUpArgs& args) {
  using namespace gate_up;
  using S = Simd<Config::isa, Config::dtype>;
  using element = typename S::element;
  auto* const s = (Scratch*)scratch<sizeof(Scratch)>();

  // Indices.
  const int32 item = int32(nd_item<1>().get_group(0));
  const int32 group_idx = item / args.num_ranges;
  const Routing routing = find_routing<Config>(
      {args.topk_ids, args.expert_map, args.num_tokens, args.top_k, args.num_experts, args.num_global_experts,
       args.topk_ids_row_stride},
      args.sorted_pairs, args.groups, s->few);
  if (group_idx >= routing.num_groups) return;
  const Group group = routing.groups[group_idx];
  const int32 i0 = item % args.num_ranges * args.n_block;
  const int32 left = args.intermediate_size - i0;
  const int32 rows = left < args.n_block ? left : args.n_block;
  const int64 hidden = args.hidden_size;

  // Tensors.
  const auto* w = static_cast<const element*>(args.w1) + group.expert * args.w1_expert_stride;
  const int64 to_row = Config::w1_layout == Layout::nk ? args.w1_stride : 1;
  const auto* w_gate = w + i0 * to_row;
  const auto* w_up = w_gate + args.intermediate_size * to_row;
  const element* const matrices[2] = {w_gate, w_up};
  float* const tiles[2] = {s->gate, s->up};
  const int64 units_per_token = inter_units<S>(args.intermediate_size);
  const int32 first_unit = i0 / S::k_per_unit;

  for (int32 done = 0; done < group.tokens;) {
    const int num_tokens = block_tokens(group.tokens - done);
    const int padded = padded_tokens(num_tokens);
    const int row_stride = int(align_up(rows, 16));
    const int32* pairs = routing.pairs + group.first + done;
    const element* tokens[kMaxBlockTokens];
    for (int t = 0; t < padded; ++t) {  // padding repeats the last token: its results are never read
      const int64 token = pairs[t < num_tokens ? t : num_tokens - 1] / args.top_k;
      tokens[t] = static_cast<const element*>(args.hidden_states) + token * args.x_row_stride;
    }

    // GEMM: gate and up as [rows][padded] (lanes form) or [tokens][row_stride].
    const bool lanes_are_tokens = uses_lanes_form<Config, Config::w1_layout>(num_tokens);
    if constexpr (Config::w1_layout == Layout::kn) {
      for (int half = 0; half < 2; ++half)
        columns_form<S, S>(matrices[half], args.w1_stride, rows, tokens, num_tokens, hidden, tiles[half], row_stride);
    } else {
      if constexpr (!Config::few_pairs)
        if (lanes_are_tokens) {
          const int64 num_units = ceil_div(hidden, S::k_per_unit);
          for (int64 u0 = 0; u0 < num_units; u0 += kPanelUnits) {
            const int64 units = num_units - u0 < kPanelUnits ? num_units - u0 : kPanelUnits;
            pack_panel<S>(tokens, padded, hidden, u0, units, s->panel);
            for (int half = 0; half < 2; ++half) {
              const element* after = half == 0          ? w_up + u0 * S::k_per_unit
                                     : u0 + units < num_units ? w_gate + (u0 + units) * S::k_per_unit
                                                              : w_gate + rows * args.w1_stride;
              lanes_form<S>(matrices[half], args.w1_stride, rows, s->panel, padded, hidden, u0, units, after,
                            tiles[half], padded, s->staged);
            }
          }
        }
      if (!lanes_are_tokens)
        rows_form<S, S, 2>(matrices, args.w1_stride, rows, tokens, num_tokens, hidden, tiles, row_stride);
    }

    // Epilogue.
    apply_activation<S, Config::activation>(s->gate, s->up, lanes_are_tokens ? rows * padded : num_tokens * row_stride);

    // Store.
    auto* inter = static_cast<uint32*>(args.inter) + (group.slot + done) * units_per_token;
    const bool wants_panel = uses_lanes_form<Config, Config::w2_layout>(num_tokens);
    const float* tile = s->gate;
    if constexpr (Config::w1_layout != Config::w2_layout) {
      if (lanes_are_tokens && !wants_panel) {
        transpose_tile(s->gate, rows, padded, num_tokens, s->up, row_stride);
        tile = s->up;
      } else if (wants_panel && !lanes_are_tokens) {
        for (int i = 0; i < rows * padded; i += S::lanes) store(s->up + i, typename S::floats(0.0f));
        transpose_tile(s->gate, num_tokens, row_stride, rows, s->up, padded);
        tile = s->up;
      }
    }
    if (wants_panel) store_panel<S>(tile, rows, padded, inter + first_unit * padded);
    else store_rows<S>(tile, num_tokens, rows, row_stride, inter + first_unit, units_per_token);
    done += num_tokens;
  }
}

}  // namespace jitmoe::kernel

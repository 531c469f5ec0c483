// SPDX-License-Identifier: MIT
// First GEMM of the MoE layer with its activation, on CPUs with AMX:
//
//   inter[p][i] = round(act(sum_h x[t(p)][h] * w1[e][i][h]) * sum_h x[t(p)][h] * w1[e][I + i][h])
//
// | tensor        | shape                | dtype | layout, owner
// | hidden_states | [M][H]               | bf16  | row stride x_row_stride, dense rows; caller's
// | w1            | [E][2I][H]           | bf16  | expert stride, and w1_stride between rows (nk) or between columns of
// |               |                      |       | the dense dimension (kn); caller's
// | topk_ids, expert_map                 |       | read if few_pairs; caller's
// | sorted_pairs, groups                 |       | read otherwise; workspace, from route_serial
// | panels        | [num_items][block_tokens][H] | bf16 | workspace, token tiles of one work-item's current block
// | inter         | [slots / 16][I / 2][16]      | bf16 pairs | workspace, token tiles (cpu/amx_form.hpp), zero past I
//
// nd_range: (num_items), work-groups of 1 work-item, which have equal shares of all rows of all active experts
// (cpu/shares.hpp). A step is 16 gate rows and the same 16 up rows: their product tiles meet in the activation.
// Local memory: the sums of one step, staged weights.
// Numerics: fp32 accumulation in a fixed order; activation and product in fp32; rounded once to bf16.
#pragma once

#include <jitmoe/cpu/amx_form.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/cpu/shares.hpp>
#include <jitmoe/entry.hpp>
#include <jitmoe/epilogue/activation.hpp>

namespace jitmoe::kernel {

struct CpuGateUpAmxArgs {
  const void* hidden_states;
  const void* w1;
  const void* topk_ids;
  const void* expert_map;
  const void* sorted_pairs;
  const void* groups;
  void* panels;
  void* inter;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 hidden_size;
  int32 intermediate_size;
  int32 num_items;
  int32 block_tokens;  // tokens of one expert that are multiplied together: a multiple of 16, at most kMaxTiles * 16
  int64 x_row_stride;
  int64 w1_expert_stride;
  int64 w1_stride;
  int64 topk_ids_row_stride;
};

namespace gate_up_amx {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

using S = Simd<CpuIsa::amx_bf16, DType::bf16>;

struct Scratch {
  float sums[kMaxTiles * 2 * amx::kTileFloats];
  uint16 staged[2 * amx::kRows * kStagedK];
  FewPairs few;
};

// Stores act(gate) * up of one step's 16 rows and 16 tokens as 8 units of a token tile.
template <Activation activation> inline void store_activated(const float* gate, const float* up, uint32* units) {
#pragma clang loop unroll(disable)
  for (int u = 0; u < amx::kRows / 2; ++u) {
    Vec<uint32, 16> bits[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = (2 * u + i) * amx::kTokens;
      bits[i] = bf16_bits<16>(epilogue::activate<activation, 16>(load<S::floats>(gate + at)) * load<S::floats>(up + at));
    }
    store(units + u * amx::kTokens, bits[0] | (bits[1] << 16));
  }
}

}  // namespace gate_up_amx

template <class Config> inline void cpu_gate_up_amx(const CpuGateUpAmxArgs& args) {
  using namespace gate_up_amx;
  using W = TileWeights<S, Config::w1_layout>;
  static_assert(Config::dtype == DType::bf16, "tiles multiply bf16");
  auto* const s = (Scratch*)scratch<sizeof(Scratch)>();

  // Indices.
  const int32 item = int32(nd_item<1>().get_group(0));
  const Routing routing = find_routing<Config>(
      {args.topk_ids, args.expert_map, args.num_tokens, args.top_k, args.num_experts, args.num_global_experts,
       args.topk_ids_row_stride},
      args.sorted_pairs, args.groups, s->few);
  const int64 hidden = args.hidden_size, inner = args.intermediate_size;
  const int64 num_steps = ceil_div(inner, amx::kRows);
  Shares shares(routing, num_steps, item, args.num_items);

  // Tensors.
  const int64 panel_units = align_up(ceil_div(hidden, 2), 16);
  const int64 inter_units = align_up(ceil_div(inner, 2), 16);
  auto* const panel = static_cast<uint32*>(args.panels) + int64(item) * args.block_tokens * panel_units;
  auto* const inter = static_cast<uint32*>(args.inter);
  const auto rows_of = [&](int32 expert, int64 step) {
    const int64 to_row = Config::w1_layout == Layout::nk ? args.w1_stride : 1;
    const auto* w = static_cast<const uint16*>(args.w1) + expert * args.w1_expert_stride;
    const int64 i = step * amx::kRows;
    const int left = int(inner - i < amx::kRows ? inner - i : amx::kRows);
    return typename W::Rows{{w + i * to_row, w + (inner + i) * to_row}, {left, left}, args.w1_stride};
  };

  amx::configure();
  bool started = false;
  for (int32 group_idx = 0; group_idx < routing.num_groups; ++group_idx) {
    const Group group = routing.groups[group_idx];
    int64 first, last;
    shares.next(group, first, last);
    if (first >= last) continue;
    if (!started) W::lines(rows_of(group.expert, first), 0, hidden < kPieceK ? hidden : kPieceK).fetch(1 << 30);
    started = true;
    // The group that follows in this work-item's share, if any, begins with its first row.
    const bool is_last = last < num_steps || group_idx + 1 == routing.num_groups || shares.is_done();
    for (int32 done = 0; done < group.tokens; done += args.block_tokens) {
      const int num_tokens = group.tokens - done < args.block_tokens ? group.tokens - done : args.block_tokens;
      const int num_tiles = int(ceil_div(num_tokens, amx::kTokens));
      const int32* pairs = routing.pairs + group.first + done;
      for (int tile = 0; tile < num_tiles; ++tile) {
        const uint16* tokens[amx::kTokens];
        for (int t = 0; t < amx::kTokens; ++t) {  // padding repeats the last token: its results are never read
          const int at = tile * amx::kTokens + t;
          const int64 token = pairs[at < num_tokens ? at : num_tokens - 1] / args.top_k;
          tokens[t] = static_cast<const uint16*>(args.hidden_states) + token * args.x_row_stride;
        }
        pack_panel<S>(tokens, amx::kTokens, hidden, 0, panel_units, panel + tile * panel_units * amx::kTokens);
      }
      uint32* const tiles = inter + (group.slot + done) * inter_units;
      for (int64 step = first; step < last; ++step) {
        // GEMM.
        const bool more_blocks = done + num_tokens < group.tokens;
        typename W::Rows next;
        const bool has_next = step + 1 < last || more_blocks || !is_last;
        if (step + 1 < last) next = rows_of(group.expert, step + 1);
        else if (more_blocks) next = rows_of(group.expert, first);
        else if (!is_last) next = rows_of(routing.groups[group_idx + 1].expert, 0);
        amx_form<W>(rows_of(group.expert, step), has_next ? &next : nullptr, panel, panel_units * amx::kTokens, num_tiles,
                    hidden, s->sums, s->staged);
        // Epilogue.
        for (int tile = 0; tile < num_tiles; ++tile) {
          const float* sums = s->sums + tile * 2 * amx::kTileFloats;
          uint32* const units = tiles + (tile * inter_units + step * amx::kRows / 2) * amx::kTokens;
          store_activated<Config::activation>(sums, sums + amx::kTileFloats, units);
          if (step + 1 == num_steps && num_steps % 2 != 0)  // a tile of the second GEMM reads 32 elements
            for (int u = 0; u < amx::kRows / 2; ++u)
              store(units + (amx::kRows / 2 + u) * amx::kTokens, S::units(0u));
        }
      }
    }
  }
  amx::release();
}

}  // namespace jitmoe::kernel

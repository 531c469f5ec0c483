// SPDX-License-Identifier: MIT
// Rows of the caller's matrix written where the second GEMM of the MoE layer reads its operand, on CPUs:
//
//   inter[p][i] = a[t(p)][i], in the layout that gate_up would have left
//
// So cpu_down and cpu_down_amx are a grouped GEMM of their own.
//
// | tensor        | shape           | dtype      | layout, owner
// | hidden_states | [M][I]          | dtype      | row stride x_row_stride, dense rows; caller's
// | topk_ids, expert_map            |            | read if few_pairs; caller's
// | sorted_pairs, groups            |            | read otherwise; workspace, from route_serial
// | inter         | [slots][I]      | units      | workspace, layout of cpu/routing.hpp; with `tiles` token tiles
// |               |                 |            | [slots / 16][I / 2][16] (cpu/amx_form.hpp), zero past I
//
// nd_range: (max_groups * num_ranges), work-groups of 1 work-item; a work-item has range_units units of K of all rows of
// one group. Numerics: bits are moved; where units are floats, the conversion is exact.
#pragma once

#include <jitmoe/cpu/routing.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/cpu/tiles.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

struct CpuPackArgs {
  const void* hidden_states;
  const void* topk_ids;
  const void* expert_map;
  const void* sorted_pairs;
  const void* groups;
  void* inter;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 intermediate_size;
  int32 range_units;  // a multiple of 16
  int32 num_ranges;
  int64 x_row_stride;
  int64 topk_ids_row_stride;
};

template <class Config> inline void cpu_pack(const CpuPackArgs& args) {
  using namespace jitmoe::cpu;
  using S = Simd<Config::isa, Config::dtype>;
  static_assert(!Config::tiles || S::pairs, "tiles of pairs; an fp16 is not cut in two for a grouped GEMM");
  using element = typename S::element;
  (void)Config::w2_layout;  // token tiles have one layout
  auto* const few = (FewPairs*)scratch<sizeof(FewPairs)>();

  // Indices.
  const int32 item = int32(nd_item<1>().get_group(0));
  const int32 group_idx = item / args.num_ranges;
  const Routing routing = find_routing<Config>(args, *few);
  if (group_idx >= routing.num_groups) return;
  const Group group = routing.groups[group_idx];
  const int64 inner = args.intermediate_size;
  const int64 units_per_token = inter_units<S>(inner);
  const int64 u0 = int64(item % args.num_ranges) * args.range_units;
  const int64 units = units_per_token - u0 < args.range_units ? units_per_token - u0 : args.range_units;

  for (int32 done = 0; done < group.tokens;) {
    const int left = group.tokens - done;
    const int num_tokens = Config::tiles ? (left < kSlotGranule ? left : kSlotGranule) : block_tokens(left);
    const int padded = padded_tokens(num_tokens);
    const int32* pairs = routing.pairs + group.first + done;
    const element* tokens[kMaxBlockTokens];
    for (int t = 0; t < padded; ++t) {  // padding repeats the last token: its results are never read
      const int64 token = pairs[t < num_tokens ? t : num_tokens - 1] / args.top_k;
      tokens[t] = static_cast<const element*>(args.hidden_states) + token * args.x_row_stride;
    }
    auto* inter = static_cast<uint32*>(args.inter) + (group.slot + done) * units_per_token;
    bool wants_panel = Config::tiles;
    if constexpr (!Config::tiles) wants_panel = uses_lanes_form<Config, Config::w2_layout>(num_tokens);
    if (wants_panel) {
      pack_panel<S>(tokens, padded, inner, u0, units, inter + u0 * Panel<S>::width(padded), units_per_token);
    } else {
      for (int t = 0; t < num_tokens; ++t)
#pragma clang loop unroll(disable)
        for (int64 u = u0; u < u0 + units; u += S::lanes)
          store(inter + t * units_per_token + u, S::load_units(tokens[t], u, inner));
    }
    done += num_tokens;
  }
}

}  // namespace jitmoe::kernel

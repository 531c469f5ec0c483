// SPDX-License-Identifier: MIT
// A whole call in one launch, for few tokens: route, pack (if the rows cannot be gathered), gate_up, down and combine
// are the steps of scheduler/tickets.hpp. Formulas, tensors and numerics are those of the kernels of the same names,
// whose functions do the work, so the result has the bits of their launches one after the other.
//
// Config::RouteConfig, GateUpConfig, DownConfig, CombineConfig and, where rows are packed, PackConfig are the Configs of
// those kernels. Both GEMMs have the same tile.
//
// | tensor   | shape                | dtype | layout, owner
// | counters | scheduler/tickets.hpp        | the queue's, zero between launches
// | out      | [M][H]               | dtype | NaN in every element that no step has computed, if a wait has failed
// | all others: kernel/route_group.hpp, xe_pack.hpp, xe_gemm_args.hpp, xe_combine.hpp
//
// nd_range: any number of the GEMMs' work-groups (kernel/xe_grouped_gemm.hpp) of num_ranges sub-groups or
// more. SLM: that of the GEMM with more of it, and Tickets::kLocalBytes. GRF: the spec's large_grf.
#pragma once

#include <jitmoe/kernel/xe_combine.hpp>
#include <jitmoe/kernel/xe_down.hpp>
#include <jitmoe/kernel/xe_gate_up.hpp>
#include <jitmoe/kernel/xe_pack.hpp>
#include <jitmoe/kernel/xe_route.hpp>
#include <jitmoe/scheduler/tickets.hpp>

namespace jitmoe::kernel {

struct XeSingleArgs {
  const void* hidden_states;
  const void* w1;
  const void* w1_up;
  const void* w1_bias;
  const void* w2;
  const void* w2_bias;
  const void* topk_weights;
  const void* topk_ids;
  const void* expert_map;
  void* out;
  void* route_table;
  void* expert_offsets;
  void* sorted_pairs;
  void* blocks;
  void* num_blocks;
  void* packed_x;
  void* inter;
  void* partial;
  void* counters;
  int32 num_tokens;
  int32 hidden_size;
  int32 intermediate_size;
  int32 num_experts;
  int32 num_global_experts;
  int32 top_k;
  int32 num_ranges;
  int32 packed_pitch;
  int32 inter_pitch;
  int32 partial_pitch;
  int32 max_polls;
  int64 x_row_stride;
  int64 w1_expert_stride;
  int64 w1_stride;
  int64 w2_expert_stride;
  int64 w2_stride;
  int64 topk_weights_row_stride;
  int64 topk_ids_row_stride;
  int64 out_row_stride;
  float swiglu_alpha;
  float swiglu_limit;

  XeRouteArgs route(int32 block_rows) const {
    return {.topk_ids = topk_ids,
            .expert_map = expert_map,
            .route_table = route_table,
            .expert_offsets = expert_offsets,
            .sorted_pairs = sorted_pairs,
            .blocks = blocks,
            .num_blocks = num_blocks,
            .num_tokens = num_tokens,
            .top_k = top_k,
            .num_experts = num_experts,
            .num_global_experts = num_global_experts,
            .topk_ids_row_stride = topk_ids_row_stride,
            .block_rows = block_rows,
            .num_ranges = num_ranges};
  }
  XePackArgs pack() const {
    return {.hidden_states = hidden_states,
            .sorted_pairs = sorted_pairs,
            .expert_offsets = expert_offsets,
            .packed_x = packed_x,
            .hidden_size = hidden_size,
            .top_k = top_k,
            .num_experts = num_experts,
            .packed_pitch = packed_pitch,
            .x_row_stride = x_row_stride};
  }
  XeGateUpArgs gate_up(bool gathers) const {
    return {.hidden_states = hidden_states,
            .packed_x = packed_x,
            .w1 = w1,
            .w1_up = w1_up,
            .w1_bias = w1_bias,
            .topk_weights = topk_weights,
            .sorted_pairs = sorted_pairs,
            .blocks = blocks,
            .num_blocks = num_blocks,
            .inter = inter,
            .hidden_size = hidden_size,
            .intermediate_size = intermediate_size,
            .top_k = top_k,
            .inter_pitch = inter_pitch,
            .x_stride = gathers ? x_row_stride : packed_pitch,
            .w_expert_stride = w1_expert_stride,
            .w_stride = w1_stride,
            .topk_weights_row_stride = topk_weights_row_stride,
            .swiglu_alpha = swiglu_alpha,
            .swiglu_limit = swiglu_limit};
  }
  XeDownArgs down() const {
    return {.inter = inter,
            .w2 = w2,
            .w2_bias = w2_bias,
            .topk_weights = topk_weights,
            .sorted_pairs = sorted_pairs,
            .blocks = blocks,
            .num_blocks = num_blocks,
            .partial = partial,
            .hidden_size = hidden_size,
            .intermediate_size = intermediate_size,
            .top_k = top_k,
            .first_column = 0,
            .num_columns = hidden_size,
            .partial_pitch = partial_pitch,
            .inter_pitch = inter_pitch,
            .w_expert_stride = w2_expert_stride,
            .w_stride = w2_stride,
            .topk_weights_row_stride = topk_weights_row_stride};
  }
  XeCombineArgs combine() const {
    return {.topk_ids = topk_ids,
            .expert_map = expert_map,
            .partial = partial,
            .out = out,
            .num_tokens = num_tokens,
            .top_k = top_k,
            .num_experts = num_experts,
            .num_global_experts = num_global_experts,
            .first_column = 0,
            .num_columns = hidden_size,
            .partial_pitch = partial_pitch,
            .topk_ids_row_stride = topk_ids_row_stride,
            .out_row_stride = out_row_stride};
  }
};

// NaN to all of `out`, by the work-group of the caller.
template <class Config> inline void spoil(const XeCombineArgs& args) {
  const auto nan = arch::narrow<Config::emulated, Config::dtype>(__builtin_nanf(""));
  scheduler::Stride only{0, 1};
  scheduler::for_each_by_sub_group(
      only, args.num_tokens, arch::sub_group_id(), num_sub_groups<Config>(), [&](int32 t) {
        auto* row = static_cast<element_t<Config::dtype>*>(args.out) + t * args.out_row_stride;
        for (int32 h = arch::lane_id(); h < args.num_columns; h += Config::simd) row[h] = nan;
      });
}

template <class Config> inline void xe_single(const XeSingleArgs& args) {
  using GateUp = typename Config::GateUpConfig;
  using Down = typename Config::DownConfig;
  using Tickets = scheduler::Tickets;
  constexpr int32 kSlices = kSliceBytes<GateUp> > kSliceBytes<Down> ? kSliceBytes<GateUp> : kSliceBytes<Down>;
  auto* memory = static_cast<JITMOE_LOCAL uint8*>(arch::local_memory<kSlices + Tickets::kLocalBytes>());
  const int32 sub_group = arch::sub_group_id(), sub_groups = num_sub_groups<Config>();
  Tickets tickets(args.counters, memory + kSlices, grid_walk().num_groups, args.max_polls);

  tickets.for_each(1, [&](int32) {
    route_few<typename Config::RouteConfig>(args.route(GateUp::sub_groups_m * GateUp::tile_rows), sub_group, sub_groups);
  });
  tickets.wait();  // the numbers of rows and blocks are known from here on
  if constexpr (requires { typename Config::PackConfig; })
    pack_rows<typename Config::PackConfig>(args.pack(), tickets, sub_group, sub_groups);
  gate_up_tiles<GateUp>(args.gate_up(GateUp::tokens == XeTokens::gather), tickets, memory);
  down_tiles<Down>(args.down(), tickets, memory);
  combine_rows<typename Config::CombineConfig>(args.combine(), tickets, sub_group, sub_groups);
  if (tickets.has_given_up()) spoil<typename Config::CombineConfig>(args.combine());
  tickets.leave();
}

}  // namespace jitmoe::kernel

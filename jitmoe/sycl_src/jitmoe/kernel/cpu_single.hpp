// SPDX-License-Identifier: MIT
// A whole call of few pairs in one launch: gate_up and down are the steps of cpu/tickets.hpp. Formulas, tensors and
// numerics are those of kernel/cpu_gate_up.hpp and cpu_down.hpp, whose functions do the work, so the result has the bits of
// their launches one after the other. `out` may be hidden_states: a piece of down stores after the last piece of gate_up.
//
// Config::GateUpConfig and DownConfig are the Configs of those kernels, with few_pairs and without prepared rows.
//
// | tensor   | shape             | dtype | layout, owner
// | counters | cpu/tickets.hpp   | int32 | the queue's, zero between launches
// | all others: kernel/cpu_gate_up.hpp, cpu_down.hpp
//
// nd_range: (any number of work-items, num_items), work-groups of 1; one per core is enough. A ticket is taken before the
// one in hand is done, so that the weights of what comes next are known, and asked for. Local memory: that of the GEMM with
// more of it, and the routing.
#pragma once

#include <jitmoe/cpu/tickets.hpp>
#include <jitmoe/kernel/cpu_down.hpp>
#include <jitmoe/kernel/cpu_gate_up.hpp>

namespace jitmoe::kernel {

struct CpuSingleArgs {
  const void* hidden_states;
  const void* w1;
  const void* w1_up;
  const void* w1_bias;
  const void* w2;
  const void* w2_bias;
  const void* topk_weights;
  const void* topk_ids;
  const void* expert_map;
  void* inter;
  void* sums;
  void* out;
  void* counters;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 hidden_size;
  int32 intermediate_size;
  int32 n_block;  // rows of one range of gate_up
  int32 num_ranges;  // of gate_up
  int32 h_block;  // columns of one range of down
  int32 num_items;  // of the launch
  int64 x_row_stride;
  int64 w1_expert_stride;
  int64 w1_stride;
  int64 w2_expert_stride;
  int64 w2_stride;
  int64 topk_ids_row_stride;
  int64 topk_weights_row_stride;
  int64 out_row_stride;
  float swiglu_alpha;
  float swiglu_limit;
  const void* w1_scale = nullptr;
  const void* w1_zero_point = nullptr;
  int64 w1_scale_expert_stride = 0;
  int64 w1_scale_n_stride = 0;
  int64 w1_scale_k_stride = 0;
  int64 w1_zero_expert_stride = 0;
  int64 w1_zero_n_stride = 0;
  int64 w1_zero_k_stride = 0;
  int32 w1_block_n = 0;
  const void* w2_scale = nullptr;
  const void* w2_zero_point = nullptr;
  int64 w2_scale_expert_stride = 0;
  int64 w2_scale_n_stride = 0;
  int64 w2_scale_k_stride = 0;
  int64 w2_zero_expert_stride = 0;
  int64 w2_zero_n_stride = 0;
  int64 w2_zero_k_stride = 0;
  int32 w2_block_n = 0;

  CpuGateUpArgs gate_up() const {
    return {.hidden_states = hidden_states,
            .w1 = w1,
            .w1_up = w1_up,
            .w1_bias = w1_bias,
            .topk_weights = topk_weights,
            .topk_ids = topk_ids,
            .expert_map = expert_map,
            .sorted_pairs = nullptr,
            .groups = nullptr,
            .inter = inter,
            .num_tokens = num_tokens,
            .top_k = top_k,
            .num_experts = num_experts,
            .num_global_experts = num_global_experts,
            .hidden_size = hidden_size,
            .intermediate_size = intermediate_size,
            .n_block = n_block,
            .num_ranges = num_ranges,
            .x_row_stride = x_row_stride,
            .w1_expert_stride = w1_expert_stride,
            .w1_stride = w1_stride,
            .topk_ids_row_stride = topk_ids_row_stride,
            .topk_weights_row_stride = topk_weights_row_stride,
            .swiglu_alpha = swiglu_alpha,
            .swiglu_limit = swiglu_limit,
            .w1_scale = w1_scale,
            .w1_zero_point = w1_zero_point,
            .w1_scale_expert_stride = w1_scale_expert_stride,
            .w1_scale_n_stride = w1_scale_n_stride,
            .w1_scale_k_stride = w1_scale_k_stride,
            .w1_zero_expert_stride = w1_zero_expert_stride,
            .w1_zero_n_stride = w1_zero_n_stride,
            .w1_zero_k_stride = w1_zero_k_stride,
            .w1_block_n = w1_block_n};
  }
  CpuDownArgs down() const {
    return {.inter = inter,
            .w2 = w2,
            .w2_bias = w2_bias,
            .topk_weights = topk_weights,
            .topk_ids = topk_ids,
            .expert_map = expert_map,
            .sorted_pairs = nullptr,
            .groups = nullptr,
            .sums = sums,
            .out = out,
            .num_tokens = num_tokens,
            .top_k = top_k,
            .num_experts = num_experts,
            .num_global_experts = num_global_experts,
            .hidden_size = hidden_size,
            .intermediate_size = intermediate_size,
            .h_block = h_block,
            .w2_expert_stride = w2_expert_stride,
            .w2_stride = w2_stride,
            .topk_ids_row_stride = topk_ids_row_stride,
            .topk_weights_row_stride = topk_weights_row_stride,
            .out_row_stride = out_row_stride,
            .w2_scale = w2_scale,
            .w2_zero_point = w2_zero_point,
            .w2_scale_expert_stride = w2_scale_expert_stride,
            .w2_scale_n_stride = w2_scale_n_stride,
            .w2_scale_k_stride = w2_scale_k_stride,
            .w2_zero_expert_stride = w2_zero_expert_stride,
            .w2_zero_n_stride = w2_zero_n_stride,
            .w2_zero_k_stride = w2_zero_k_stride,
            .w2_block_n = w2_block_n};
  }
};

template <class Config> inline void cpu_single(const CpuSingleArgs& args) {
  using namespace cpu;
  using GateUp = typename Config::GateUpConfig;
  using Down = typename Config::DownConfig;
  static_assert(GateUp::few_pairs && Down::few_pairs && !GateUp::x_prepared && !Down::x_prepared, "two steps");
  struct Local {
    union {
      gate_up::Scratch gate_up;
      down::Scratch down;
    };
    FewPairs few;
  };
  auto* const local = (Local*)scratch<sizeof(Local)>();
  const Routing routing = route_few<GateUp>(args, local->few);
  const CpuGateUpArgs gate_up_args = args.gate_up();
  const CpuDownArgs down_args = args.down();
  const int32 gate_up_items = routing.num_groups * args.num_ranges;
  const int32 all_items = gate_up_items + int32(ceil_div(args.hidden_size, args.h_block));

  const Tickets tickets(args.counters);
  const auto wait = [&](int32 group) { tickets.wait(group, args.num_ranges); };
  int32 next = tickets.take();
  for (int32 item = next; item < all_items; item = next) {
    next = tickets.take();
    if (item < gate_up_items) {
      gate_up::gate_up_item<GateUp>(gate_up_args, routing, item, next, &local->gate_up);
      tickets.finish(item / args.num_ranges);
    } else {
      down::down_range<Down>(down_args, routing, item - gate_up_items, next - gate_up_items, wait, &local->down);
    }
  }
  tickets.leave(args.num_items, routing.num_groups);
}

}  // namespace jitmoe::kernel

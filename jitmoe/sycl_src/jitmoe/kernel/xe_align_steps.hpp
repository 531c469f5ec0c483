// SPDX-License-Identifier: MIT
// Pairs sorted by expert in blocks, with many work-items: the counting sort of kernel/route_group.hpp with each expert's
// places padded to whole blocks. Outputs are those of kernel/cpu_align.hpp, bit for bit.
//
// | tensor              | shape           | dtype         | layout, owner
// | topk_ids            | [M][k]          | IdType        | row stride topk_ids_row_stride, caller's
// | expert_map          | [global]        | int32         | read if has_expert_map, caller's
// | topk_weights        | [M][k]          | weights_dtype | row stride topk_weights_row_stride; with has_weights, caller's
// | sorted_token_ids    | [num_sorted]    | int32         | pairs by expert, ascending within one; M * k everywhere else
// | expert_ids          | [num_blocks]    | int32         | expert of each block_size places; -1 past the last
// | num_tokens_post_pad | [1]             | int32         | places in use
// | sorted_weights      | [num_sorted]    | fp32          | with has_weights: the pair's weight, 0 in padding
// | output              | zeroed_bytes    | bytes         | cleared; caller's, 4 B aligned
// | route_table         | [num_ranges][E] | int32         | workspace; as in route_group.hpp
// | expert_offsets      | [E + 1]         | int32         | workspace; first place of each expert
//
// Steps: count (and everything that is no pair gets its value), scan, place. One work-group does all of them for few
// pairs (xe_align); three launches for many (xe_align_count, xe_align_scan, xe_align_place).
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/kernel/route_group.hpp>

namespace jitmoe::kernel {

struct XeAlignArgs {
  const void* topk_ids;
  const void* expert_map;
  const void* topk_weights;
  void* sorted_token_ids;
  void* expert_ids;
  void* num_tokens_post_pad;
  void* sorted_weights;
  void* output;
  void* route_table;
  void* expert_offsets;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 block_size;
  int32 num_sorted;
  int32 num_blocks;
  int32 num_ranges;
  int64 topk_ids_row_stride;
  int64 topk_weights_row_stride;
  int64 zeroed_bytes;
};

inline XeRouteArgs route_args(const XeAlignArgs& args) {
  return {args.topk_ids,
          args.expert_map,
          args.route_table,
          args.expert_offsets,
          args.sorted_token_ids,
          nullptr,
          nullptr,
          args.num_tokens,
          args.top_k,
          args.num_experts,
          args.num_global_experts,
          args.topk_ids_row_stride,
          args.block_size,
          args.num_ranges};
}

template <class Config> struct XeAlign {
  const XeAlignArgs& args;
  RouteGroup<Config> route;

  void count(int32 range) const {
    route.count(range);
    const int64 work_item = int64(range) * Config::simd + arch::lane_id();
    const int64 num_items = int64(args.num_ranges) * Config::simd;
    auto* sorted = static_cast<int32*>(args.sorted_token_ids);
    for (int64 at = work_item; at < args.num_sorted; at += num_items) sorted[at] = args.num_tokens * args.top_k;
    if constexpr (Config::has_weights)
      for (int64 at = work_item; at < args.num_sorted; at += num_items)
        static_cast<float*>(args.sorted_weights)[at] = 0.0f;
    auto* experts = static_cast<int32*>(args.expert_ids);
    for (int64 block = work_item; block < args.num_blocks; block += num_items) experts[block] = -1;
    const int64 dwords = args.zeroed_bytes / 4;
    for (int64 at = work_item; at < dwords; at += num_items) static_cast<int32*>(args.output)[at] = 0;
    if (work_item < args.zeroed_bytes % 4) static_cast<uint8*>(args.output)[4 * dwords + work_item] = 0;
  }

  // One work-group of num_sub_groups sub-groups.
  void scan(int32 sub_group, int32 num_sub_groups) const {
    auto* offsets = static_cast<int32*>(args.expert_offsets);
    auto* experts = static_cast<int32*>(args.expert_ids);
    const int32 lane = arch::lane_id();
    route.scan_ranges(sub_group, num_sub_groups);
    arch::work_group_barrier();
    if (sub_group == 0) {
      int32 blocks_before = 0;
      if (lane == 0) offsets[0] = 0;
      for (int32 base = 0; base < args.num_experts; base += Config::simd) {
        const int32 e = base + lane;
        const int32 num = e < args.num_experts ? int32(ceil_div(offsets[e + 1], args.block_size)) : 0;
        const int32 to_here = blocks_before + route.sum_to_here(num);
        if (e < args.num_experts) {
          offsets[e + 1] = to_here * args.block_size;
          for (int32 block = to_here - num; block < to_here; ++block) experts[block] = e;
        }
        blocks_before = arch::shuffle(to_here, Config::simd - 1);
      }
      if (lane == 0) *static_cast<int32*>(args.num_tokens_post_pad) = blocks_before * args.block_size;
    }
  }

  void place(int32 range) const {
    (void)Config::weights_dtype;  // only read with weights
    route.place(range, [this](int32 at, int32 pair) {
      static_cast<int32*>(args.sorted_token_ids)[at] = pair;
      if constexpr (Config::has_weights) {
        const int64 from = pair / args.top_k * args.topk_weights_row_stride + pair % args.top_k;
        static_cast<float*>(args.sorted_weights)[at] = arch::read_float<Config::weights_dtype>(args.topk_weights, from);
      }
    });
  }
};

}  // namespace jitmoe::kernel

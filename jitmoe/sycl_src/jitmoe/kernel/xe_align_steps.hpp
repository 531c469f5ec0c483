// SPDX-License-Identifier: MIT
// Pairs sorted by expert in blocks, with many work-items: the counting sort of kernel/route_group.hpp with each expert's
// places padded to whole blocks. Tensors: common/align_args.hpp.
//
// Steps: count (and everything that is no pair gets its value), scan, place. One work-group does all of them for few
// pairs (xe_align); three launches for many (xe_align_count, xe_align_scan, xe_align_place).
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/common/align_args.hpp>
#include <jitmoe/kernel/route_group.hpp>

namespace jitmoe::kernel {

template <class Config> struct XeAlign {
  const AlignArgs& args;
  RouteGroup<Config, AlignArgs> route{args};

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

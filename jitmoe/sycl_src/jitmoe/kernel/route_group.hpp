// SPDX-License-Identifier: MIT
// Groups pairs (common/pairs.hpp) by expert with many work-items: a stable counting sort over ranges of pairs.
//
// | tensor         | shape             | dtype   | layout, owner
// | topk_ids, expert_map               |         | common/pairs.hpp
// | route_table    | [num_ranges][E]   | int32   | workspace; pairs per range and expert, then each one's next place
// | expert_offsets | [E + 1]           | int32   | workspace; exclusive prefix sums of pairs per expert
// | sorted_pairs   | [M * k]           | int32   | workspace; pairs by expert, ascending within one expert
// | blocks         | [max_blocks][4]   | int32   | workspace; {expert, first, count, 0}: at most block_rows sorted pairs
// | num_blocks     | [1]               | int32   | workspace; <= min(E, M * k) + M * k / block_rows
//
// The same tables as kernel/route_serial.hpp makes, but blocks are full up to an expert's last one. Steps:
//   count   one sub-group per range of consecutive pairs: how many go to each expert (integer atomics: any order, one sum)
//   scan    one work-group: places per (expert, range), experts outermost, so that the sort is stable; row blocks
//   place   one sub-group per range, S pairs at a time: a pair's place = next place of (range, expert) + its rank among
//           the equal experts in lower lanes
// Few pairs: all steps in one work-group with barriers between (xe_route). Many: three launches, the ranges spread over
// work-groups (xe_route_count, xe_route_scan, xe_route_place). The order depends on nothing but the ids.
#pragma once

#include <jitmoe/arch/atomics.hpp>
#include <jitmoe/common/pairs.hpp>

namespace jitmoe::kernel {

struct XeRouteArgs {
  const void* topk_ids;
  const void* expert_map;
  void* route_table;
  void* expert_offsets;
  void* sorted_pairs;
  void* blocks;
  void* num_blocks;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int64 topk_ids_row_stride;
  int32 block_rows;
  int32 num_ranges;
};

// Args: XeRouteArgs, or those of a kernel that takes some of the steps only.
template <class Config, class Args = XeRouteArgs> struct RouteGroup {
  const Args& args;

  int32 expert_of(int32 pair) const {
    return local_expert<Config>(args, pair / args.top_k, pair % args.top_k);
  }

  struct Range { int32 begin, end; };
  Range range(int32 index) const {
    const int32 pairs = args.num_tokens * args.top_k;
    const int32 each = int32(ceil_div(ceil_div(pairs, args.num_ranges), Config::simd)) * Config::simd;
    const int64 begin = int64(index) * each, end = begin + each;
    return {int32(begin < pairs ? begin : pairs), int32(end < pairs ? end : pairs)};
  }
  int32* row(int32 index) const {
    return static_cast<int32*>(args.route_table) + int64(index) * args.num_experts;
  }

  void count(int32 range_index) const {
    int32* counts = row(range_index);
    const int32 lane = arch::lane_id();
    for (int32 e = lane; e < args.num_experts; e += Config::simd) counts[e] = 0;
    arch::sub_group_barrier();
    const Range pairs = range(range_index);
    for (int32 p = pairs.begin + lane; p < pairs.end; p += Config::simd) {
      const int32 e = expert_of(p);
      if (e >= 0) arch::atomic_add<arch::Order::relaxed>(counts + e, 1);
    }
  }

  // One work-group of num_sub_groups sub-groups: offsets[e + 1] = pairs of expert e, and each (range, expert)'s places
  // within the expert.
  void scan_ranges(int32 sub_group, int32 num_sub_groups) const {
    auto* offsets = static_cast<int32*>(args.expert_offsets);
    const int32 work_item = sub_group * Config::simd + arch::lane_id(), num_items = num_sub_groups * Config::simd;
    for (int32 e = work_item; e < args.num_experts; e += num_items) {
      int32 total = 0;
      for (int32 r = 0; r < args.num_ranges; ++r) {
        const int32 here = row(r)[e];
        row(r)[e] = total;
        total += here;
      }
      offsets[e + 1] = total;
    }
  }

  // Inclusive prefix sum over the lanes.
  static int32 sum_to_here(int32 value) {
    const int32 lane = arch::lane_id();
    _Pragma("unroll") for (int32 distance = 1; distance < Config::simd; distance *= 2) {
      const int32 more = arch::shuffle(value, lane >= distance ? lane - distance : lane);
      if (lane >= distance) value += more;
    }
    return value;
  }

  // One work-group. Sub-group 0 alone walks over the experts (E / S short steps).
  void scan(int32 sub_group, int32 num_sub_groups) const {
    auto* offsets = static_cast<int32*>(args.expert_offsets);
    const int32 lane = arch::lane_id();
    scan_ranges(sub_group, num_sub_groups);
    arch::work_group_barrier();
    if (sub_group == 0) {
      auto* blocks = static_cast<int32*>(args.blocks);
      int32 pairs_before = 0, blocks_before = 0;
      if (lane == 0) offsets[0] = 0;
      for (int32 base = 0; base < args.num_experts; base += Config::simd) {
        const int32 e = base + lane;
        const int32 pairs = e < args.num_experts ? offsets[e + 1] : 0;
        const int32 num = int32(ceil_div(pairs, args.block_rows));
        const int32 pairs_to_here = sum_to_here(pairs), blocks_to_here = sum_to_here(num);
        if (e < args.num_experts) {
          offsets[e + 1] = pairs_before + pairs_to_here;
          int32 first = pairs_before + pairs_to_here - pairs;
          int32* block = blocks + 4 * int64(blocks_before + blocks_to_here - num);
          for (int32 left = pairs; left > 0; left -= args.block_rows, first += args.block_rows, block += 4) {
            block[0] = e;
            block[1] = first;
            block[2] = left < args.block_rows ? left : args.block_rows;
            block[3] = 0;
          }
        }
        pairs_before += arch::shuffle(pairs_to_here, Config::simd - 1);
        blocks_before += arch::shuffle(blocks_to_here, Config::simd - 1);
      }
      if (lane == 0) *static_cast<int32*>(args.num_blocks) = blocks_before;
    }
  }

  // Calls put(place, pair) for the pairs of a range; an expert's places start at its offset.
  template <class Put> void place(int32 range_index, const Put& put) const {
    const auto* offsets = static_cast<const int32*>(args.expert_offsets);
    int32* next = row(range_index);
    const Range pairs = range(range_index);
    for (int32 base = pairs.begin; base < pairs.end; base += Config::simd) {
      const int32 lane = arch::lane_id(), p = base + lane;
      const int32 e = p < pairs.end ? expert_of(p) : -1;
      int32 rank = 0, equal = 0;
      _Pragma("unroll") for (int32 other = 0; other < Config::simd; ++other) {
        const bool same = arch::shuffle(e, other) == e;
        equal += same;
        rank += same && other < lane;
      }
      int32 before = 0;
      if (e >= 0) before = next[e];
      arch::sub_group_barrier();  // every lane has read before one of them moves the place on
      if (e >= 0) {
        put(offsets[e] + before + rank, p);
        if (rank == equal - 1) next[e] = before + equal;
      }
      arch::sub_group_barrier();  // the next pairs see it moved
    }
  }

  void place(int32 range_index) const {
    place(range_index, [this](int32 at, int32 pair) { static_cast<int32*>(args.sorted_pairs)[at] = pair; });
  }
};

// Launches that spread the ranges over work-groups: range = global sub-group index.
template <class Config> inline int32 global_range() {
  const auto item = nd_item<1>();
  return int32(item.get_global_id(0)) / Config::simd;
}

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// How many pairs each expert gets, and how uneven that is.
//
// | tensor      | shape           | dtype  | layout, owner
// | topk_ids    | [M][k]          | IdType | row stride topk_ids_row_stride, caller's; ids outside [0, E) are not counted
// | route_table | [num_ranges][E] | int32  | workspace; as in route_group.hpp, of an earlier launch if is_counted
// | counts      | [E]             | int32  | caller's
// | imbalance   | [1]             | fp32   | largest count / mean count, 0 without pairs; caller's
//
// nd_range: one work-group of whole sub-groups, num_ranges of them unless is_counted. No SLM.
#pragma once

#include <jitmoe/kernel/route_group.hpp>

namespace jitmoe::kernel {

struct XeExpertLoadArgs {
  const void* topk_ids;
  void* route_table;
  void* counts;
  void* imbalance;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_ranges;
  int64 topk_ids_row_stride;
};

template <class Config> inline void xe_expert_load(const XeExpertLoadArgs& args) {
  const RouteGroup<Config, XeExpertLoadArgs> route{args};
  const int32 sub_group = arch::sub_group_id(), lane = arch::lane_id();
  const int32 num_items = int32(nd_item<1>().get_local_range(0));
  auto* counts = static_cast<int32*>(args.counts);
  (void)Config::ids_dtype, (void)Config::has_expert_map;  // only read if pairs are counted here
  if constexpr (!Config::is_counted) {
    route.count(sub_group);
    arch::work_group_barrier();
  }
  for (int32 e = sub_group * Config::simd + lane; e < args.num_experts; e += num_items) {
    int32 total = 0;
    for (int32 r = 0; r < args.num_ranges; ++r) total += route.row(r)[e];
    counts[e] = total;
  }
  arch::work_group_barrier();
  if (sub_group == 0) {
    int32 largest = 0, total = 0;
    for (int32 e = lane; e < args.num_experts; e += Config::simd) {
      largest = counts[e] > largest ? counts[e] : largest;
      total += counts[e];
    }
    largest = arch::sub_group_max(largest);
    total = arch::sub_group_sum<Config::simd>(total);
    if (lane == 0)
      *static_cast<float*>(args.imbalance) = total > 0 ? float(largest) * float(args.num_experts) / float(total) : 0.0f;
  }
}

}  // namespace jitmoe::kernel

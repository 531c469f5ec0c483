// SPDX-License-Identifier: MIT
// Groups (token, slot) pairs by expert: a stable counting sort in one work-item (CPU devices, many pairs).
//
//   pair p = token * top_k + slot;  e(p) = expert_map[topk_ids[token][slot]], or the id itself without a map
//   pairs with e(p) outside [0, num_experts) belong to another rank and are dropped
//
// | tensor         | shape            | dtype         | layout, owner
// | topk_ids       | [M][k]           | IdType        | row stride topk_ids_row_stride, caller's
// | expert_map     | [global experts] | int32         | read if has_expert_map, caller's
// | cursors        | [E]              | int32         | workspace; scratch
// | sorted_pairs   | [M * k]          | int32         | workspace; pairs by expert, ascending within one expert
// | groups         | [1 + max_groups] | cpu::Group    | workspace; experts with pairs, see cpu/routing.hpp. Entry 0
// |                |                  |               | holds only how many follow, as its first number
//
// nd_range: 1 work-group of 1 work-item.
// The order depends on nothing but the ids, so everything after it is deterministic.
#pragma once

#include <jitmoe/cpu/routing.hpp>

namespace jitmoe::kernel {

struct RouteArgs {
  const void* topk_ids;
  const void* expert_map;
  void* cursors;
  void* sorted_pairs;
  void* groups;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int64 topk_ids_row_stride;
};

template <class Config> inline void route_serial(const RouteArgs& args) {
  const cpu::RoutingArgs ids{args.topk_ids,    args.expert_map,         args.num_tokens,         args.top_k,
                             args.num_experts, args.num_global_experts, args.topk_ids_row_stride};
  auto* cursors = static_cast<int32*>(args.cursors);
  auto* pairs = static_cast<int32*>(args.sorted_pairs);
  auto* groups = static_cast<cpu::Group*>(args.groups);

  for (int32 e = 0; e < args.num_experts; ++e) cursors[e] = 0;
  for (int64 t = 0; t < args.num_tokens; ++t)
    for (int32 j = 0; j < args.top_k; ++j) {
      const int32 e = cpu::local_expert<Config>(ids, t, j);
      if (e >= 0) ++cursors[e];
    }

  int32 num_groups = 0, first = 0, slot = 0;
  for (int32 e = 0; e < args.num_experts; ++e) {
    const int32 count = cursors[e];
    cursors[e] = first;
    if (count == 0) continue;
    groups[++num_groups] = {e, first, count, slot};
    first += count;
    slot += int32(align_up(count, cpu::kSlotGranule));
  }
  groups[0].expert = num_groups;

  for (int64 t = 0; t < args.num_tokens; ++t)
    for (int32 j = 0; j < args.top_k; ++j) {
      const int32 e = cpu::local_expert<Config>(ids, t, j);
      if (e >= 0) pairs[cursors[e]++] = int32(t * args.top_k + j);
    }
}

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// Groups pairs (common/pairs.hpp) by expert: a stable counting sort in one work-item (CPU devices, many pairs).
//
// | tensor         | shape            | dtype         | layout, owner
// | topk_ids, expert_map              |               | common/pairs.hpp
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
  auto* cursors = static_cast<int32*>(args.cursors);
  auto* pairs = static_cast<int32*>(args.sorted_pairs);
  auto* groups = static_cast<cpu::Group*>(args.groups);

  for (int32 e = 0; e < args.num_experts; ++e) cursors[e] = 0;
  cpu::for_each_pair<Config>(args, 0, args.num_tokens, [&](int64, int32, int32 e) { ++cursors[e]; });

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

  cpu::for_each_pair<Config>(args, 0, args.num_tokens, [&](int64 t, int32 j, int32 e) {
    pairs[cursors[e]++] = int32(t * args.top_k + j);
  });
}

}  // namespace jitmoe::kernel

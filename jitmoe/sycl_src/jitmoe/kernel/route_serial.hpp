// SPDX-License-Identifier: MIT
// Groups (token, slot) pairs by expert: a stable counting sort in one work-item (CPU devices).
//
//   pair p = token * top_k + slot;  e(p) = expert_map[topk_ids[token][slot]], or the id itself without a map
//   pairs with e(p) outside [0, num_experts) belong to another rank and are dropped
//
// | tensor         | shape            | dtype         | layout, owner
// | topk_ids       | [M][k]           | IdType        | row stride topk_ids_row_stride, caller's
// | expert_map     | [global experts] | int32         | read if has_expert_map, caller's
// | expert_offsets | [E + 1]          | int32         | workspace; exclusive prefix sums of pairs per expert
// | sorted_pairs   | [M * k]          | int32         | workspace; pairs by expert, ascending within one expert
// | blocks         | [max_blocks][4]  | int32         | workspace; {expert, first, count, slot}: at most block_rows
// |                |                  |               | consecutive sorted pairs of one expert, an expert's
// |                |                  |               | blocks of nearly equal size; slot is the sum of all
// |                |                  |               | counts before it, each rounded up to slot_granule
// | num_blocks     | [1]              | int32         | workspace; <= min(E, M * k) + M * k / block_rows
//
// nd_range: 1 work-group of 1 work-item. Scratch: expert_offsets doubles as histogram and cursor.
// The order depends on nothing but the ids, so everything after it is deterministic.
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe::kernel {

struct RouteArgs {
  const void* topk_ids;
  const void* expert_map;
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
  int32 slot_granule;
};

// The local expert of an id, or -1.
template <class Config> inline int32 local_expert(const RouteArgs& args, int64 id) {
  if constexpr (Config::has_expert_map) {
    if (id < 0 || id >= args.num_global_experts) return -1;
    id = static_cast<const int32*>(args.expert_map)[id];
  }
  return id >= 0 && id < args.num_experts ? int32(id) : -1;
}

template <class Config> inline void route_serial(const RouteArgs& args) {
  const auto* ids = static_cast<const element_t<Config::ids_dtype>*>(args.topk_ids);
  auto* offsets = static_cast<int32*>(args.expert_offsets);
  auto* pairs = static_cast<int32*>(args.sorted_pairs);
  auto* blocks = static_cast<int32*>(args.blocks);

  for (int32 e = 0; e <= args.num_experts; ++e) offsets[e] = 0;
  for (int64 t = 0; t < args.num_tokens; ++t)
    for (int32 j = 0; j < args.top_k; ++j) {
      const int32 e = local_expert<Config>(args, ids[t * args.topk_ids_row_stride + j]);
      if (e >= 0) ++offsets[e + 1];
    }

  int32 num_blocks = 0, slot = 0;
  for (int32 e = 0; e < args.num_experts; ++e) {
    const int32 first = offsets[e], count = offsets[e + 1];
    offsets[e + 1] += first;
    // Blocks of nearly equal size: a small last one would read all weights for few tokens.
    const int32 rows = int32(ceil_div(count, ceil_div(count > 0 ? count : 1, args.block_rows)));
    for (int32 done = 0; done < count; done += rows, ++num_blocks) {
      const int32 left = count - done;
      blocks[4 * num_blocks + 0] = e;
      blocks[4 * num_blocks + 1] = first + done;
      blocks[4 * num_blocks + 2] = left < rows ? left : rows;
      blocks[4 * num_blocks + 3] = slot;
      slot += int32(align_up(blocks[4 * num_blocks + 2], args.slot_granule));
    }
  }
  *static_cast<int32*>(args.num_blocks) = num_blocks;

  // Placing pairs moves each expert's start to its end; shifting by one place restores the offsets.
  for (int64 t = 0; t < args.num_tokens; ++t)
    for (int32 j = 0; j < args.top_k; ++j) {
      const int32 e = local_expert<Config>(args, ids[t * args.topk_ids_row_stride + j]);
      if (e >= 0) pairs[offsets[e]++] = int32(t * args.top_k + j);
    }
  for (int32 e = args.num_experts; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// Pairs sorted by expert in blocks, all steps of cpu/align.hpp in one work-item (CPU devices, few pairs).
//
//   pair p = token * top_k + slot;  e(p) = expert_map[topk_ids[token][slot]], or the id itself without a map
//   pairs with e(p) outside [0, num_experts) belong to another rank and are left out
//
// | tensor              | shape           | dtype         | layout, owner
// | topk_ids            | [M][k]          | IdType        | row stride topk_ids_row_stride, caller's
// | expert_map          | [global]        | int32         | read if has_expert_map, caller's
// | topk_weights        | [M][k]          | weights_dtype | row stride topk_weights_row_stride; with has_weights, caller's
// | sorted_token_ids    | [num_sorted]    | int32         | pairs by expert, ascending within one; M * k everywhere else
// | expert_ids          | [num_blocks]    | int32         | expert of each block_size places; -1 past the last
// | num_tokens_post_pad | [1]             | int32         | places in use
// | sorted_weights      | [num_sorted]    | fp32          | with has_weights: the pair's weight, 0 in padding
// | output              | zeroed_bytes    | bytes         | cleared; caller's
// | counts, cursors     | [num_ranges][E] | int32         | workspace
//
// nd_range: 1 work-item; num_ranges is 1. The order depends on nothing but the ids.
#pragma once

#include <jitmoe/cpu/align.hpp>

namespace jitmoe::kernel {

template <class Config> inline void cpu_align(const cpu::AlignArgs& args) {
  const cpu::Align<Config> align{args};
  align.count(0);
  align.place(0);
}

}  // namespace jitmoe::kernel

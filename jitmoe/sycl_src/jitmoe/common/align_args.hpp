// SPDX-License-Identifier: MIT
// Arguments of the kernels that sort pairs (common/pairs.hpp) by expert, each expert's padded to whole blocks. What they
// write is the same on all devices, bit for bit, and depends on nothing but the ids.
//
// | tensor              | shape           | dtype         | layout, owner
// | topk_ids, expert_map                  |               | common/pairs.hpp
// | topk_weights        | [M][k]          | weights_dtype | row stride topk_weights_row_stride; with has_weights, caller's
// | sorted_token_ids    | [num_sorted]    | int32         | pairs by expert, ascending within one; M * k everywhere else
// | expert_ids          | [num_blocks]    | int32         | expert of each block_size places; -1 past the last
// | num_tokens_post_pad | [1]             | int32         | places in use
// | sorted_weights      | [num_sorted]    | fp32          | with has_weights: the pair's weight, 0 in padding
// | output              | zeroed_bytes    | bytes         | cleared; caller's, GPU: 4 B aligned
// | counts, cursors     | [num_ranges][E] | int32         | CPU; workspace: pairs per range and expert, their next places
// | route_table         | [num_ranges][E] | int32         | GPU; workspace; as in kernel/route_group.hpp
// | expert_offsets      | [E + 1]         | int32         | GPU; workspace; first place of each expert
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe {

struct AlignArgs {
  const void* topk_ids;
  const void* expert_map;
  const void* topk_weights;
  void* sorted_token_ids;
  void* expert_ids;
  void* num_tokens_post_pad;
  void* sorted_weights;
  void* output;
  // On CPUs.
  void* counts = nullptr;
  void* cursors = nullptr;
  // On GPUs.
  void* route_table = nullptr;
  void* expert_offsets = nullptr;
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

}  // namespace jitmoe

// SPDX-License-Identifier: MIT
// The (token, slot) pairs of a call and the experts they go to.
//
//   pair p = token * top_k + slot;  e(p) = expert_map[topk_ids[token][slot]], or the id itself without a map
//   pairs with e(p) outside [0, num_experts) belong to another rank and are left out
//
// | tensor     | shape            | dtype     | layout, owner
// | topk_ids   | [M][k]           | ids_dtype | row stride topk_ids_row_stride, caller's
// | expert_map | [global experts] | int32     | read if has_expert_map, caller's
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe {

// e(token * top_k + slot), or -1. `args` has the tensors, topk_ids_row_stride, num_experts and, with a map,
// num_global_experts.
template <class Config, class Args> inline int32 local_expert(const Args& args, int64 token, int32 slot) {
  int64 id = static_cast<const element_t<Config::ids_dtype>*>(args.topk_ids)[token * args.topk_ids_row_stride + slot];
  if constexpr (Config::has_expert_map) {
    if (id < 0 || id >= args.num_global_experts) return -1;
    id = static_cast<const int32*>(args.expert_map)[id];
  }
  return id >= 0 && id < args.num_experts ? int32(id) : -1;
}

}  // namespace jitmoe

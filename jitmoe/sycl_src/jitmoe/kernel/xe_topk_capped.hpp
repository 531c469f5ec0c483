// SPDX-License-Identifier: MIT
// Second step of capped routing, after xe_topk: the same as kernel/cpu_topk_capped.hpp, by one sub-group.
//
// nd_range: one sub-group. SLM: the keys (arch/topk.hpp), and 4 * E bytes: how many more tokens each expert takes.
#pragma once

#include <jitmoe/arch/topk.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_topk_capped(const TopKArgs& args) {
  (void)Config::sub_groups;  // one here
  using TopK = arch::TopK<Config>;
  auto* slm = (JITMOE_LOCAL uint8*)arch::local_memory<TopK::kKeyBytes + 4 * Config::num_experts>();
  const TopK topk(args, slm);
  auto* room = (JITMOE_LOCAL int32*)(slm + TopK::kKeyBytes);
  const int32 lane = arch::lane_id();
  for (int32 e = lane; e < Config::num_experts; e += Config::simd) room[e] = args.capacity;
  arch::sub_group_local_barrier();
  for (int32 token = 0; token < args.num_tokens; ++token) {
    const auto* row =
        static_cast<const element_t<Config::ids_dtype>*>(args.topk_ids) + int64(token) * args.ids_row_stride;
    int32 ids[TopK::kSlots], full = 0;
    _Pragma("unroll") for (int32 r = 0; r < TopK::kSlots; ++r) {
      const int32 slot = r * Config::simd + lane;
      ids[r] = slot < Config::top_k ? int32(row[slot]) : -1;
      if (ids[r] >= 0 && room[ids[r]] <= 0) full = 1;
    }
    if (arch::sub_group_max(full)) topk.template choose<true>(token, room, ids);
    _Pragma("unroll") for (int32 r = 0; r < TopK::kSlots; ++r)
      if (ids[r] >= 0) room[ids[r]] -= 1;  // ids of a token differ, so no two lanes meet
    arch::sub_group_local_barrier();
  }
}

}  // namespace jitmoe::kernel

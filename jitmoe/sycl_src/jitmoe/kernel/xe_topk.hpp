// SPDX-License-Identifier: MIT
// Experts and weights from router logits (tensors and numerics: common/topk_args.hpp).
// nd_range: whole sub-groups, each for every n-th token, sub_groups per work-group.
// SLM: sub_groups * 4 * E (1 + 1 / S) bytes. Sums run in a fixed order.
#pragma once

#include <jitmoe/arch/topk.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_topk(const TopKArgs& args) {
  using TopK = arch::TopK<Config>;
  const auto item = nd_item<1>();
  const int32 first = int32(item.get_global_id(0)) / Config::simd;
  const int32 step = int32(item.get_global_range(0)) / Config::simd;
  auto* slm = (JITMOE_LOCAL uint8*)arch::local_memory<Config::sub_groups * TopK::kKeyBytes>();
  const TopK topk(args, slm + arch::sub_group_id() * TopK::kKeyBytes);
  int32 ids[TopK::kSlots];
  for (int32 token = first; token < args.num_tokens; token += step) topk.template choose<false>(token, nullptr, ids);
}

}  // namespace jitmoe::kernel

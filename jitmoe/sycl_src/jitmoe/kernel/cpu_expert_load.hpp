// SPDX-License-Identifier: MIT
// How many pairs each expert gets, and how uneven that is.
//
// | tensor     | shape  | dtype  | layout, owner
// | topk_ids   | [M][k] | IdType | row stride topk_ids_row_stride, caller's; ids outside [0, E) are not counted
// | counts     | [E]    | int32  | caller's
// | imbalance  | [1]    | fp32   | largest count / mean count, 0 without pairs; caller's
//
// nd_range: 1 work-item.
#pragma once

#include <jitmoe/cpu/routing.hpp>

namespace jitmoe::kernel {

struct CpuExpertLoadArgs {
  const void* topk_ids;
  void* counts;
  void* imbalance;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int64 topk_ids_row_stride;
};

template <class Config> inline void cpu_expert_load(const CpuExpertLoadArgs& args) {
  const auto* ids = static_cast<const element_t<Config::ids_dtype>*>(args.topk_ids);
  auto* counts = static_cast<int32*>(args.counts);
  for (int32 e = 0; e < args.num_experts; ++e) counts[e] = 0;
  for (int64 t = 0; t < args.num_tokens; ++t)
    for (int32 j = 0; j < args.top_k; ++j) {
      const int64 e = ids[t * args.topk_ids_row_stride + j];
      if (e >= 0 && e < args.num_experts) ++counts[e];
    }
  int32 largest = 0;
  int64 total = 0;
  for (int32 e = 0; e < args.num_experts; ++e) {
    largest = counts[e] > largest ? counts[e] : largest;
    total += counts[e];
  }
  *static_cast<float*>(args.imbalance) = total > 0 ? float(largest) * float(args.num_experts) / float(total) : 0.0f;
}

}  // namespace jitmoe::kernel

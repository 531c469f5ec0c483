// SPDX-License-Identifier: MIT
// Sorting of few pairs: all steps of kernel/xe_align_steps.hpp in one work-group.
// nd_range: one work-group of num_ranges sub-groups. No SLM; counts live in the workspace, which stays in the caches.
#pragma once

#include <jitmoe/kernel/xe_align_steps.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_align(const AlignArgs& args) {
  const XeAlign<Config> align{args};
  const int32 range = arch::sub_group_id();
  align.count(range);
  arch::work_group_barrier();
  align.scan(range, args.num_ranges);
  arch::work_group_barrier();
  align.place(range);
}

}  // namespace jitmoe::kernel

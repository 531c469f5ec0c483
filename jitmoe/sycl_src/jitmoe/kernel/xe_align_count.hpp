// SPDX-License-Identifier: MIT
// Sorting of many pairs, step 1 of 3 (kernel/xe_align_steps.hpp): pairs per range and expert, and all that is no pair.
// nd_range: num_ranges sub-groups or more, one dimension.
#pragma once

#include <jitmoe/kernel/xe_align_steps.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_align_count(const AlignArgs& args) {
  const int32 range = global_range<Config>();
  if (range < args.num_ranges) XeAlign<Config>{args}.count(range);
}

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// Sorting of many pairs, step 3 of 3 (kernel/xe_align_steps.hpp): the pairs.
// nd_range: num_ranges sub-groups or more, one dimension.
#pragma once

#include <jitmoe/kernel/xe_align_steps.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_align_place(const AlignArgs& args) {
  const int32 range = global_range<Config>();
  if (range < args.num_ranges) XeAlign<Config>{args}.place(range);
}

}  // namespace jitmoe::kernel

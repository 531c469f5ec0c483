// SPDX-License-Identifier: MIT
// Sorting of many pairs, step 2 of 3 (kernel/xe_align_steps.hpp): first places and the experts of blocks.
// nd_range: one work-group of any number of whole sub-groups.
#pragma once

#include <jitmoe/kernel/xe_align_steps.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_align_scan(const AlignArgs& args) {
  const auto item = nd_item<1>();
  const XeAlign<Config> align{args};
  align.scan(arch::sub_group_id(), int32(item.get_local_range(0)) / Config::simd);
}

}  // namespace jitmoe::kernel

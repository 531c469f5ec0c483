// SPDX-License-Identifier: MIT
// Where a work-item is in a launch of one dimension.
#pragma once

#include <jitmoe/scheduler/walk.hpp>

namespace jitmoe::kernel {

// The fixed walk of the launch's work-groups.
inline scheduler::Stride grid_walk() {
  const auto item = nd_item<1>();
  return {int32(item.get_group(0)), int32(item.get_group_range(0))};
}

template <class Config> inline int32 num_sub_groups() { return int32(nd_item<1>().get_local_range(0)) / Config::simd; }

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// Grouping of many pairs, step 2 of 3 (kernel/route_group.hpp): offsets and row blocks.
// nd_range: one work-group of any number of whole sub-groups.
#pragma once

#include <jitmoe/kernel/route_group.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_route_scan(const XeRouteArgs& args) {
  const auto item = nd_item<1>();
  RouteGroup<Config>{args}.scan(arch::sub_group_id(), int32(item.get_local_range(0)) / Config::simd);
}

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// Grouping of many pairs, step 3 of 3 (kernel/route_group.hpp): the sorted pairs.
// nd_range: num_ranges sub-groups or more, one dimension.
#pragma once

#include <jitmoe/kernel/route_group.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_route_place(const XeRouteArgs& args) {
  const int32 range = global_range<Config>();
  if (range < args.num_ranges) RouteGroup<Config>{args}.place(range);
}

}  // namespace jitmoe::kernel

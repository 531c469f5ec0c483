// SPDX-License-Identifier: MIT
// Grouping of many pairs, step 1 of 3 (kernel/route_group.hpp): pairs per range and expert.
// nd_range: num_ranges sub-groups or more, one dimension.
#pragma once

#include <jitmoe/kernel/route_group.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_route_count(const XeRouteArgs& args) {
  const int32 range = global_range<Config>();
  if (range < args.num_ranges) RouteGroup<Config>{args}.count(range);
}

}  // namespace jitmoe::kernel

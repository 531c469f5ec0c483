// SPDX-License-Identifier: MIT
// Grouping of few pairs: all steps of kernel/route_group.hpp in one work-group (tables and order are described there).
// nd_range: one work-group of num_ranges sub-groups. No SLM; counts live in the workspace, which stays in the caches.
#pragma once

#include <jitmoe/kernel/route_group.hpp>

namespace jitmoe::kernel {

template <class Config> inline void xe_route(const XeRouteArgs& args) {
  const RouteGroup<Config> route{args};
  const int32 range = arch::sub_group_id();
  route.count(range);
  arch::work_group_barrier();
  route.scan(range, args.num_ranges);
  arch::work_group_barrier();
  route.place(range);
}

}  // namespace jitmoe::kernel

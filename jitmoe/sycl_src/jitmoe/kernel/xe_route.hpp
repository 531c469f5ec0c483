// SPDX-License-Identifier: MIT
// Grouping of few pairs: all steps of kernel/route_group.hpp in one work-group (tables and order are described there).
// nd_range: one work-group of num_ranges sub-groups or more. No SLM; counts live in the workspace, which stays in the
// caches.
#pragma once

#include <jitmoe/kernel/grid.hpp>
#include <jitmoe/kernel/route_group.hpp>

namespace jitmoe::kernel {

// By the work-group of the caller.
template <class Config> inline void route_few(const XeRouteArgs& args, int32 sub_group, int32 num_sub_groups) {
  const RouteGroup<Config> route{args};
  if (sub_group < args.num_ranges) route.count(sub_group);
  arch::work_group_barrier();
  route.scan(sub_group, num_sub_groups);
  arch::work_group_barrier();
  if (sub_group < args.num_ranges) route.place(sub_group);
}

template <class Config> inline void xe_route(const XeRouteArgs& args) {
  route_few<Config>(args, arch::sub_group_id(), num_sub_groups<Config>());
}

}  // namespace jitmoe::kernel

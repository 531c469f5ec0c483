// SPDX-License-Identifier: MIT
// Which work-group does which piece of work. A walk has for_each(count, body): it calls body(id) for those of the ids
// 0, 1, ..., count - 1 that are this work-group's; all its work-items make the same calls.
//
//   Stride    fixed: work-group g of n takes g, g + n, g + 2 n, ...  (one launch per step of a call)
//   Tickets   whoever is free takes the next one                     (all steps in one launch: scheduler/tickets.hpp)
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe::scheduler {

struct Stride {
  int32 group, num_groups;

  template <class Index, class Body> void for_each(Index count, const Body& body) const {
    for (Index id = group; id < count; id += num_groups) body(id);
  }
};

// The same for pieces that one sub-group does alone.
template <class Walk, class Index, class Body>
inline void for_each_by_sub_group(Walk& walk, Index count, int32 sub_group, int32 num_sub_groups, const Body& body) {
  walk.for_each(Index(ceil_div(count, num_sub_groups)), [&](Index id) {
    const Index piece = id * num_sub_groups + sub_group;
    if (piece < count) body(piece);
  });
}

}  // namespace jitmoe::scheduler

// SPDX-License-Identifier: MIT
// Equal shares of the first GEMM for a fixed number of work-items, however tokens are spread over experts.
//
// The work is the sequence of all groups' steps of weight rows. A step of a group costs what its weights cost to read,
// or what its tokens cost to multiply, whichever is more; a work-item does the steps that begin in its part of the
// total cost. So work-items take the same time with one active expert or with all, and none is without work.
#pragma once

#include <jitmoe/cpu/routing.hpp>

namespace jitmoe::cpu {

// Tokens that take as long to multiply as the weights take to read (AMX: 200 operations per byte at its best).
constexpr int kReadCostTokens = 128;

class Shares {
 public:
  Shares(const Routing& routing, int64 steps_per_group, int32 item, int32 num_items) : steps_(steps_per_group) {
    int64 total = 0;
    for (int32 g = 0; g < routing.num_groups; ++g) total += cost(routing.groups[g]) * steps_;
    begin_ = total * item / num_items;
    end_ = total * (item + 1) / num_items;
  }

  // Sets [first, last) to this work-item's steps of the group; asked group after group, from the first.
  void next(const Group& group, int64& first, int64& last) {
    const int64 c = cost(group);
    first = begin_ <= at_ ? 0 : ceil_div(begin_ - at_, c);
    last = end_ <= at_ ? 0 : ceil_div(end_ - at_, c);
    if (last > steps_) last = steps_;
    at_ += steps_ * c;
  }

  // Whether no group after the last one asked for has steps of this work-item.
  bool is_done() const { return end_ <= at_; }

 private:
  static int64 cost(const Group& group) { return group.tokens > kReadCostTokens ? group.tokens : kReadCostTokens; }

  int64 steps_, begin_, end_, at_ = 0;
};

}  // namespace jitmoe::cpu

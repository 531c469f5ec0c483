// SPDX-License-Identifier: MIT
// Two steps in one launch: work-items take numbered pieces of work ("tickets") from one counter, all of the first step
// before any of the second, whose pieces wait for the groups of the first step that they need.
//
// A wait is for pieces that a running thread has in hand or takes next, in order, and the first step waits for nothing.
// So it ends however few work-items run at a time (scheduler/tickets.hpp has the argument, and the form for GPUs).
//
// | counters, int32 | zero before the launch, and zero again after it
// | [0], [16]       | the next ticket; work-items that take no more, the last of which clears everything
// | [32 + g]        | finished pieces of group g of the first step
#pragma once

#include <jitmoe/arch/atomics.hpp>
#include <jitmoe/cpu/routing.hpp>

namespace jitmoe::cpu {

class Tickets {
 public:
  static constexpr int kCounterBytes = 384;  // plan/cpu.py names the same number
  static_assert(kCounterBytes == 4 * (32 + kFewPairs), "see above");

  explicit Tickets(void* counters) : counters_(static_cast<int32*>(counters)) {}

  int32 take() const { return arch::atomic_add<arch::Order::relaxed>(counters_, 1); }

  // What the caller wrote is there for whoever waits for the group.
  void finish(int32 group) const { arch::atomic_add<arch::Order::release>(finished(group), 1); }

  void wait(int32 group, int32 pieces) const {
    while (arch::atomic_load<arch::Order::acquire>(finished(group)) < pieces) pause();
  }

  // The last thing to call; `num_items` is the size of the launch.
  void leave(int32 num_items, int32 num_groups) const {
    if (arch::atomic_add<arch::Order::acquire_release>(counters_ + 16, 1) != num_items - 1) return;
    counters_[0] = counters_[16] = 0;
    for (int32 g = 0; g < num_groups; ++g) *finished(g) = 0;
  }

 private:
  int32* finished(int32 group) const { return counters_ + 32 + group; }

  int32* counters_;
};

}  // namespace jitmoe::cpu

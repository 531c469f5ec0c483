// SPDX-License-Identifier: MIT
// Steps that need each other's results in one launch: work-groups take numbered pieces of work ("tickets") from one
// counter, step after step, and wait for the steps before.
//
// Tickets 0, 1, ... run through the pieces of step 1, then of step 2, and so on. Whoever holds a ticket of a step waits
// until as many tickets are finished as there are in all steps before. That never blocks for good, however few
// work-groups the device runs at a time and in whatever order it starts them: a ticket is held by a work-group that
// runs, the holder of the smallest unfinished ticket waits for nothing, and work-groups that run keep running (that is
// all that is asked of the device: Sorensen et al., OOPSLA 2016). Decoupled look-back (Merrill and Garland, 2016) and
// stream-K's fix-up (Osama et al., 2023) rest on the same. A barrier over all work-groups would need all of them at once.
//
// | counters, 64 B apart | int32, device memory; zero before the launch, and zero again after it
// | next                 | the next ticket
// | finished             | tickets that are done; kGivenUp and a bit once a work-group has given up
// | left                 | work-groups that take no more tickets; the last one clears all three
//
// So a launch can follow another on the same counters, and a captured launch can be repeated. What orders memory: every
// sub-group's fence, a work-group barrier, then one work-item's release of `finished`; one work-item's acquire of it, then
// a barrier. The release alone would do in the memory model, but on GPUs it is a fence of one hardware thread, and that
// it waits for the stores of the others is nowhere promised. The acquire drops the Xe-core's cache, so only the last look
// is one. Dropping once is enough: nothing that a step writes is fetched by others before the step is over.
//
// A ticket is taken before the piece in hand is done, so that the counter's latency is hidden. The proof holds: a holder
// does its tickets in order.
//
// Waiting is bounded: after max_polls looks a work-group gives up, and then all do. Its pieces and all later steps are
// left out, and has_given_up() tells the kernel to spoil its results.
#pragma once

#include <jitmoe/arch/atomics.hpp>

namespace jitmoe::scheduler {

class Tickets {
 public:
  static constexpr int32 kCounterBytes = 3 * 64;
  static constexpr int32 kLocalBytes = 64;  // two slots of SLM are used

  // `local`: kLocalBytes of SLM. All work-items of all num_groups work-groups call everything here.
  Tickets(void* counters, JITMOE_LOCAL void* local, int32 num_groups, int32 max_polls)
      : counters_(static_cast<int32*>(counters)),
        slots_(static_cast<JITMOE_LOCAL int32*>(local)),
        num_groups_(num_groups),
        max_polls_(max_polls),
        is_leader_(arch::sub_group_id() == 0 && arch::lane_id() == 0) {
    ticket_ = shared(taken());
  }

  // A step of `count` pieces.
  template <class Index, class Body> void for_each(Index count, const Body& body) {
    if (ticket_ - begin_ < count) wait();
    while (ticket_ - begin_ < count && !has_given_up_) {
      const int32 next = taken();
      body(Index(ticket_ - begin_));
      arch::device_fence();
      ticket_ = shared(next);  // its barrier comes after everything that the work-group has written
      if (is_leader_) arch::atomic_add<arch::Order::release>(finished(), 1);
    }
    begin_ += int32(count);
  }

  // Waits for the steps so far: what they have written may be read now, unless has_given_up().
  void wait() {
    if (has_given_up_ || waited_ == begin_) return;
    int32 is_there = 1;
    if (is_leader_) {
      for (int32 polls = 1; polls < max_polls_; ++polls) {
        const int32 done = arch::atomic_load<arch::Order::relaxed>(finished());
        if (done >= begin_ || done < kGivenUp / 2) break;
      }
      is_there = arch::atomic_load<arch::Order::acquire>(finished()) >= begin_;
      if (!is_there) arch::atomic_store<arch::Order::relaxed>(finished(), kGivenUp);
    }
    has_given_up_ = shared(is_there) == 0;
    waited_ = begin_;
  }

  bool has_given_up() const { return has_given_up_; }

  // The last thing to call.
  void leave() {
    if (is_leader_ && arch::atomic_add<arch::Order::acquire_release>(left(), 1) == num_groups_ - 1) {
      arch::atomic_store<arch::Order::relaxed>(next(), 0);
      arch::atomic_store<arch::Order::relaxed>(finished(), 0);
      arch::atomic_store<arch::Order::relaxed>(left(), 0);
    }
  }

 private:
  static constexpr int32 kGivenUp = -2147483647 - 1;

  int32* next() const { return counters_; }
  int32* finished() const { return counters_ + 16; }
  int32* left() const { return counters_ + 32; }

  int32 taken() const { return is_leader_ ? arch::atomic_add<arch::Order::relaxed>(next(), 1) : 0; }

  // The leader's value, for all work-items. Two slots in turn: who is late still reads the one before.
  int32 shared(int32 value) {
    slot_ ^= 1;
    if (is_leader_) slots_[slot_] = value;
    arch::work_group_barrier();
    return slots_[slot_];
  }

  int32* counters_;
  JITMOE_LOCAL int32* slots_;
  int32 num_groups_;
  int32 max_polls_;
  bool is_leader_;
  bool has_given_up_ = false;
  int32 slot_ = 0;
  int32 begin_ = 0;   // first ticket of the step
  int32 waited_ = 0;  // tickets below are finished
  int32 ticket_;      // in hand
};

}  // namespace jitmoe::scheduler

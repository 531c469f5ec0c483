// SPDX-License-Identifier: MIT
// Work that is done beside tile multiplications. A multiplication keeps the tile unit busy long after it was issued:
// short work between two of them is done meanwhile. Work is cut into units, and these are spread evenly over the
// multiplications.
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe::cpu {

// `units` units of work, numbered from 0, for `turns` turns.
class Pace {
 public:
  Pace() = default;
  Pace(int64 units, int64 turns) : units_(units), turns_(turns) {}

  // Does what is due in this turn: unit(number), in order.
  template <class Unit> void turn(const Unit& unit) {
    due_ += units_;
#pragma clang loop unroll(disable)
    for (; due_ >= turns_ && done_ < units_; due_ -= turns_) unit(done_++);
  }

  // Does what is left.
  template <class Unit> void finish(const Unit& unit) {
#pragma clang loop unroll(disable)
    while (done_ < units_) unit(done_++);
  }

 private:
  int64 units_ = 0, turns_ = 1, due_ = 0, done_ = 0;
};

}  // namespace jitmoe::cpu

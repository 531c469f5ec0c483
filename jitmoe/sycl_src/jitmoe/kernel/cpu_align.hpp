// SPDX-License-Identifier: MIT
// Pairs sorted by expert in blocks, all steps of cpu/align.hpp in one work-item (few pairs).
// nd_range: 1 work-item; num_ranges is 1.
#pragma once

#include <jitmoe/cpu/align.hpp>

namespace jitmoe::kernel {

template <class Config> inline void cpu_align(const AlignArgs& args) {
  const cpu::Align<Config> align{args};
  align.count(0);
  align.place(0);
}

}  // namespace jitmoe::kernel

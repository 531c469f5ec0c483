// SPDX-License-Identifier: MIT
// Pairs sorted by expert in blocks, step 1 of 2 for many pairs: "count" of cpu/align.hpp.
// nd_range: num_ranges work-groups of 1 work-item.
#pragma once

#include <jitmoe/cpu/align.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

template <class Config> inline void cpu_align_count(const AlignArgs& args) {
  cpu::Align<Config>{args}.count(int32(nd_item<1>().get_group(0)));
}

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// What the main loops that prefetch by 2D blocks share (xe_weights_a.hpp, xe_weights_b.hpp, xe_codes_a.hpp).
#pragma once

#include <jitmoe/arch/block2d.hpp>
#include <jitmoe/mainloop/xe_operands.hpp>

namespace jitmoe::mainloop {

inline arch::Surface token_surface(const Tokens& x) {
  return {x.rows, x.width * 2, x.count, int32(x.stride * 2)};
}

// What a sub-group without rows does: its share of the prefetches, and its part in the barriers.
template <class Config, class Prefetcher>
inline void keep_pace(const Weights& w, const Tokens& x, Place place, int32 k_begin, int32 k_end, int32 step) {
  if constexpr (Config::split_barrier) {
    Prefetcher prefetcher(w, x, place, k_begin);
    for (int32 ahead = 0; ahead < Config::prefetch_steps; ++ahead) prefetcher.step();
    for (int32 k = k_begin; k < k_end; k += step) {
      arch::barrier_signal<Config::emulated>();
      prefetcher.step();
      arch::barrier_wait<Config::emulated>();
    }
  }
}

}  // namespace jitmoe::mainloop

// SPDX-License-Identifier: MIT
// Split-K inside a work-group: with few tokens there are few tiles, so several sub-groups share one tile's K range.
//
// Slice s computes its part of K; slices 1, 2, ... put their accumulators into SLM and slice 0 adds them in that order,
// so the result does not depend on timing. SLM: slice_bytes().
// Against a split over work-groups this needs no second launch, no fp32 buffer of partial sums and no atomics.
#pragma once

#include <jitmoe/arch/sub_group.hpp>

namespace jitmoe::mainloop {

// The part of `steps` K steps that slice `slice` of `slices` takes: [begin, end) in steps.
struct Slice {
  int32 begin, end;
};
inline Slice slice_of(int32 steps, int32 slice, int32 slices) {
  const int32 each = (steps + slices - 1) / slices;
  const int32 begin = slice * each, end = begin + each;
  return {begin < steps ? begin : steps, end < steps ? end : steps};
}

// SLM for the accumulators (32 B per lane each) of the slices after the first.
constexpr int32 slice_bytes(int32 slices, int32 tiles, int32 accumulators, int32 simd) {
  return (slices - 1) * tiles * accumulators * simd * 32;
}

// Adds the accumulators of all slices of a tile into those of slice 0. Every sub-group of the work-group calls it.
template <int32 slices, int32 tiles, int32 simd, class Vector, int32 count>
inline void reduce_slices(JITMOE_LOCAL void* slm, Vector (&acc)[count], int32 slice, int32 tile) {
  if constexpr (slices > 1) {
    constexpr int32 kVectors = count * simd;  // one sub-group's accumulators: vector index outermost, lane fastest
    auto* memory = static_cast<JITMOE_LOCAL Vector*>(slm);
    const int32 lane = arch::lane_id();
    if (slice > 0) {
      auto* mine = memory + ((slice - 1) * tiles + tile) * kVectors + lane;
      _Pragma("unroll") for (int32 i = 0; i < count; ++i) mine[i * simd] = acc[i];
    }
    arch::local_memory_barrier();
    if (slice == 0) {
      // One accumulator at a time: loads of all of them at once would not fit the registers.
      _Pragma("unroll") for (int32 i = 0; i < count; ++i) {
        const auto* other = memory + tile * kVectors + i * simd + lane;
        _Pragma("nounroll") for (int32 s = 1; s < slices; ++s, other += tiles * kVectors) acc[i] += *other;
      }
    }
    arch::local_memory_barrier();  // the next tile writes the same memory
  }
}

}  // namespace jitmoe::mainloop

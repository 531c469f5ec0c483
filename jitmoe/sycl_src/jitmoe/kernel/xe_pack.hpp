// SPDX-License-Identifier: MIT
// Token rows copied in sorted order: packed_x[r][h] = hidden_states[sorted_pairs[r] / top_k][h], zeros after H.
//
// | tensor         | shape                 | dtype  | layout, owner
// | hidden_states  | [M][H]                | 16 bit | row stride x_row_stride, caller's
// | sorted_pairs   | [pairs]               | int32  | workspace
// | expert_offsets | [E + 1]               | int32  | workspace; the last one is the number of rows
// | packed_x       | [pairs][packed_pitch] | 16 bit | workspace; packed_pitch a multiple of 32
//
// nd_range: any number of work-groups of any number of sub-groups; sub-group s takes rows s, s + all, s + 2 all, ...
// Wanted where the main loop cannot gather (arch/choices.hpp: XeTokens): K tails, [K][N] weights.
#pragma once

#include <jitmoe/arch/sub_group.hpp>
#include <jitmoe/kernel/grid.hpp>

namespace jitmoe::kernel {

struct XePackArgs {
  const void* hidden_states;
  const void* sorted_pairs;
  const void* expert_offsets;
  void* packed_x;
  int32 hidden_size;
  int32 top_k;
  int32 num_experts;
  int32 packed_pitch;
  int64 x_row_stride;
};

template <class Config, class Walk>
inline void pack_rows(const XePackArgs& args, Walk& walk, int32 sub_group, int32 num_sub_groups) {
  const int32 lane = arch::lane_id();
  const int32 rows = static_cast<const int32*>(args.expert_offsets)[args.num_experts];
  scheduler::for_each_by_sub_group(walk, rows, sub_group, num_sub_groups, [&](int32 r) {
    const int32 token = static_cast<const int32*>(args.sorted_pairs)[r] / args.top_k;
    const auto* from = static_cast<const uint16*>(args.hidden_states) + token * args.x_row_stride;
    auto* to = static_cast<uint16*>(args.packed_x) + int64(r) * args.packed_pitch;
    if constexpr (Config::wide) {
      for (int32 h = 8 * lane; h < args.packed_pitch; h += 8 * Config::simd) {
        arch::u32x4 eight = {};
        if (h < args.hidden_size) eight = *reinterpret_cast<const arch::u32x4*>(from + h);
        *reinterpret_cast<arch::u32x4*>(to + h) = eight;
      }
    } else {
      for (int32 h = lane; h < args.packed_pitch; h += Config::simd) to[h] = h < args.hidden_size ? from[h] : uint16(0);
    }
  });
}

template <class Config> inline void xe_pack(const XePackArgs& args) {
  auto walk = grid_walk();
  pack_rows<Config>(args, walk, arch::sub_group_id(), num_sub_groups<Config>());
}

}  // namespace jitmoe::kernel

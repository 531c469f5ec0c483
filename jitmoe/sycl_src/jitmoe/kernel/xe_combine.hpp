// SPDX-License-Identifier: MIT
// Sum over a token's experts: out[t][first_column + h] = sum over slots j of partial[t * k + j][h], j ascending.
//
// | tensor     | shape                       | dtype  | layout, owner
// | topk_ids, expert_map                     |        | common/pairs.hpp
// | partial    | [M * k][partial_pitch]      | fp32   | workspace; rows of slots without an expert are not read
// | out        | [M][H]                      | dtype  | row stride out_row_stride, caller's
//
// nd_range: any number of work-groups of whole sub-groups. One sub-group per kColumns * S neighbouring columns of one
// token, taken in turn. Numerics: fp32 sums in a fixed order, one rounding. A token without experts gets zeros.
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/arch/sub_group.hpp>
#include <jitmoe/common/pairs.hpp>
#include <jitmoe/kernel/grid.hpp>

namespace jitmoe::kernel {

struct XeCombineArgs {
  const void* topk_ids;
  const void* expert_map;
  const void* partial;
  void* out;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 first_column;
  int32 num_columns;
  int32 partial_pitch;
  int64 topk_ids_row_stride;
  int64 out_row_stride;
};

template <class Config, class Walk>
inline void combine_rows(const XeCombineArgs& args, Walk& walk, int32 sub_group, int32 num_sub_groups) {
  constexpr int32 kColumns = 4;  // per lane, S apart: each load and store of a sub-group is one contiguous piece
  const int32 lane = arch::lane_id();
  const int32 pieces = int32(ceil_div(args.num_columns, kColumns * Config::simd));
  const int64 all = int64(args.num_tokens) * pieces;

  scheduler::for_each_by_sub_group(walk, all, sub_group, num_sub_groups, [&](int64 piece) {
    const int32 t = int32(piece / pieces);
    const int32 column = int32(piece % pieces) * kColumns * Config::simd + lane;
    float sum[kColumns] = {};
    for (int32 j = 0; j < args.top_k; ++j) {
      if (local_expert<Config>(args, t, j) < 0) continue;
      const auto* row = static_cast<const float*>(args.partial) + (int64(t) * args.top_k + j) * args.partial_pitch;
      _Pragma("unroll") for (int32 i = 0; i < kColumns; ++i) {
        const int32 h = column + i * Config::simd;
        if (h < args.num_columns) sum[i] += row[h];
      }
    }
    auto* out = static_cast<element_t<Config::dtype>*>(args.out) + t * args.out_row_stride + args.first_column;
    _Pragma("unroll") for (int32 i = 0; i < kColumns; ++i) {
      const int32 h = column + i * Config::simd;
      if (h < args.num_columns) out[h] = arch::narrow<Config::emulated, Config::dtype>(sum[i]);
    }
  });
}

template <class Config> inline void xe_combine(const XeCombineArgs& args) {
  auto walk = grid_walk();
  combine_rows<Config>(args, walk, arch::sub_group_id(), num_sub_groups<Config>());
}

}  // namespace jitmoe::kernel

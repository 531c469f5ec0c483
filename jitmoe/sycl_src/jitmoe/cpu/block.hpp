// SPDX-License-Identifier: MIT
// What both CPU GEMM kernels know of the routing table's blocks, and the layout of the intermediate between them.
//
// route_serial cuts each expert's tokens into blocks of at most kMaxBlockTokens. The intermediate (rounded to the
// activation dtype) of a block is kept in units (simd.hpp), num_units = ceil(I / k_per_unit) per token, and starts at
// unit block.slot * num_units:
//
//   panel   [num_units][padded]   W2 [N][K] and more than kRowsFormTokens tokens: the lanes form's operand
//   rows    [tokens][num_units]   otherwise; a row of bf16 pairs is a plain bf16 row
#pragma once

#include <jitmoe/cpu/tiles.hpp>

namespace jitmoe::cpu {

struct Block {
  int32 expert;
  int32 first;   // position of its first pair in sorted_pairs
  int32 tokens;  // pairs in it
  int32 slot;    // first of its align_up(tokens, kSlotGranule) places in the intermediate
};

constexpr int kSlotGranule = 16;  // the widest register's lanes, for all instruction sets

inline Block block_at(const void* blocks, int32 index) {
  const auto* fields = static_cast<const int32*>(blocks) + 4 * int64(index);
  return {fields[0], fields[1], fields[2], fields[3]};
}

// How the intermediate's units are multiplied: bf16 pairs, or floats that were rounded to the activation dtype.
template <CpuIsa isa, DType dtype>
using InterSimd = Simd<isa, Simd<isa, dtype>::pairs ? DType::bf16 : DType::fp32>;

template <Layout w2_layout> inline bool inter_is_panel(int tokens) {
  return w2_layout == Layout::nk && tokens > kRowsFormTokens;
}

template <class S> inline int padded_tokens(int tokens) { return int(align_up(tokens, S::lanes)); }

}  // namespace jitmoe::cpu

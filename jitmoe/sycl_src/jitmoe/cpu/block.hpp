// SPDX-License-Identifier: MIT
// What both CPU GEMM kernels know of the routing table's blocks, and the layout of the intermediate between them.
//
// route_serial cuts each expert's tokens into blocks of at most kMaxBlockTokens. The intermediate (rounded to the
// activation dtype) is kept in units (simd.hpp), a row per pair in the table's order; a row of bf16 pairs is a plain
// bf16 row. Rows are inter_stride units apart and zero from I to the next multiple of 32 elements.
#pragma once

#include <jitmoe/cpu/tiles.hpp>

namespace jitmoe::cpu {

struct Block {
  int32 expert;
  int32 first;   // position of its first pair in sorted_pairs, and row of the intermediate
  int32 tokens;  // pairs in it
};

inline Block block_at(const void* blocks, int32 index) {
  const auto* fields = static_cast<const int32*>(blocks) + 4 * int64(index);
  return {fields[0], fields[1], fields[2]};
}

constexpr int kInterGranule = 32;  // elements

// How the intermediate's units are multiplied: bf16 pairs, or floats that were rounded to the activation dtype.
template <CpuIsa isa, DType dtype>
using InterSimd = Simd<isa, Simd<isa, dtype>::pairs ? DType::bf16 : DType::fp32>;

template <Layout layout> inline bool uses_rows_form(int tokens) {
  return layout == Layout::nk && tokens <= kRowsFormTokens;
}

}  // namespace jitmoe::cpu

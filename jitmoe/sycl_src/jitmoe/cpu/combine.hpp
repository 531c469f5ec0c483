// SPDX-License-Identifier: MIT
// Adding result tiles of the second GEMM to the sums of their tokens, and storing the sums.
//
//   sums   [M][h_block] fp32, the columns of one work-item
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

// sums[t] += weight[t] * tile[.][t] for one block in the lanes form: tile [columns][padded], transposed in registers.
// Columns past `columns` are junk that nobody reads.
template <class S>
inline void add_transposed(const float* tile, int padded, int columns, const int32* tokens, const float* weights,
                           int num_tokens, float* sums, int h_block) {
  for (int t0 = 0; t0 < num_tokens; t0 += S::lanes)
    for (int n0 = 0; n0 < columns; n0 += S::lanes) {
      typename S::units square[S::lanes];
#pragma unroll
      for (int n = 0; n < S::lanes; ++n) square[n] = load<typename S::units>(tile + (n0 + n) * padded + t0);
      transpose<S::lanes>(square);
#pragma clang loop unroll(disable)
      for (int t = 0; t < S::lanes && t0 + t < num_tokens; ++t) {
        float* sum = sums + int64(tokens[t0 + t]) * h_block + n0;
        store(sum, multiply_add<S::isa, S::lanes>(bit_cast<typename S::floats>(square[t]),
                                                  typename S::floats(weights[t0 + t]), load<typename S::floats>(sum)));
      }
    }
}

// The same for a tile [tokens][h_block].
template <class S>
inline void add_rows(const float* tile, int columns, const int32* tokens, const float* weights, int num_tokens,
                     float* sums, int h_block) {
  for (int t = 0; t < num_tokens; ++t)
    for (int n = 0; n < columns; n += S::lanes) {
      float* sum = sums + int64(tokens[t]) * h_block + n;
      store(sum, multiply_add<S::isa, S::lanes>(load<typename S::floats>(tile + t * h_block + n),
                                                typename S::floats(weights[t]), load<typename S::floats>(sum)));
    }
}

// Rounds the first `columns` columns of each row of sums to the output's dtype.
template <class S>
inline void store_sums(const float* sums, int h_block, int64 num_tokens, int columns, typename S::element* out,
                       int64 out_row_stride) {
  for (int64 t = 0; t < num_tokens; ++t) {
    const float* sum = sums + t * h_block;
    typename S::element* row = out + t * out_row_stride;
    int n = 0;
    for (; n + S::lanes <= columns; n += S::lanes)
      store_floats<S::dtype, S::lanes>(row + n, load<typename S::floats>(sum + n));
    for (; n < columns; ++n) row[n] = from_float<S::dtype>(sum[n]);
  }
}

}  // namespace jitmoe::cpu

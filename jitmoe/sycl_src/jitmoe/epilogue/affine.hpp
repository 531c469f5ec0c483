// SPDX-License-Identifier: MIT
// What is done to every sum of a GEMM before anything else, on a tile of CPU kernels:
//
//   c[n][t] = c[n][t] * row_scale[n] * token_scale[t] + bias[n]
//
//   row_scale     of weights with one scale for all of K
//   token_scale   of inputs with one scale for all of K, and of routing weights that belong to the input
//   bias          of the expert's rows
//
// A tile is [rows][padded tokens] (lanes and tiles form) or [tokens][row stride]. Sums are float or int32, results float.
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::epilogue {

template <int num_rows, int num_tokens> struct Affine {
  float row_scale[num_rows];  // whole vectors: num_rows is a multiple of 16
  float bias[num_rows];
  float token_scale[num_tokens];
};

// to[i] = from[i] for i < count, as floats.
template <DType dtype> inline void copy_floats(const void* from, int64 first, int count, float* to) {
#pragma clang loop unroll(disable)
  for (int i = 0; i < count; ++i) to[i] = to_float<dtype>(static_cast<const element_t<dtype>*>(from)[first + i]);
}

inline void fill(float value, int count, float* to) {
#pragma clang loop unroll(disable)
  for (int i = 0; i < count; ++i) to[i] = value;
}

// Row n's sums of the lanes tokens from t on.
template <class S, class Sum, class A> inline typename S::floats affine_row(const A& a, int n, int t, const Sum* sums) {
  using floats = typename S::floats;
  const floats sum = __builtin_convertvector(cpu::load<cpu::Vec<Sum, S::lanes>>(sums), floats);
  const floats scale = cpu::load<floats>(a.token_scale + t) * a.row_scale[n];
  return cpu::multiply_add<S::isa, S::lanes>(sum, scale, floats(a.bias[n]));
}

// The tile of the lanes form, whose rows are n0, n0 + 1 ... and whose tokens are t0, t0 + 1 ...
template <class S, class Sum = float, class A>
inline void affine_rows(const A& a, int n0, int rows, int t0, int padded, float* tile) {
  for (int n = 0; n < rows; ++n)
#pragma clang loop unroll(disable)
    for (int t = 0; t < padded; t += S::lanes) {
      float* const at = tile + n * padded + t;
      cpu::store(at, affine_row<S>(a, n0 + n, t0 + t, reinterpret_cast<const Sum*>(at)));
    }
}

// The tile of the other forms, whose columns are n0, n0 + 1 ...
template <class S, class A>
inline void affine_tokens(const A& a, int n0, int tokens, int rows, int stride, float* tile) {
  using floats = typename S::floats;
  for (int t = 0; t < tokens; ++t)
#pragma clang loop unroll(disable)
    for (int n = 0; n < rows; n += S::lanes) {
      float* at = tile + t * stride + n;
      const floats scale = cpu::load<floats>(a.row_scale + n0 + n) * a.token_scale[t];
      const floats bias = cpu::load<floats>(a.bias + n0 + n);
      cpu::store(at, cpu::multiply_add<S::isa, S::lanes>(cpu::load<floats>(at), scale, bias));
    }
}

}  // namespace jitmoe::epilogue

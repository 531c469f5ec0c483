// SPDX-License-Identifier: MIT
// From router logits to scores, and scores as integers in the same order. F is float or a vector of floats.
//
//   sigmoid(x)       = 1 / (1 + exp(-x))
//   sqrt_softplus(x) = sqrt(log(1 + exp(x))), sqrt(x) above 20 as in torch.nn.functional.softplus
//   sparsemixer: 1 / sum of exp(x - m) over the experts near the chosen one, whose logit is m
//
// The same operations in the same order as torch's float32 ones, so that what is equal there is equal here: equal scores
// decide by index. Hence exp is accurate to 1 ulp and keeps denormals, unlike the one in epilogue/activation.hpp.
//
// exp: 2^n * p(r) with r = x - n ln 2 in two steps (Cody and Waite) and a Taylor polynomial of degree 7 on
// |r| <= ln 2 / 2 (remainder below 6e-9). log1p(u) = log(w) + (u - (w - 1)) / w with w = 1 + u rounded; log by the
// series 2 (s + s^3 / 3 + ...), s = f / (2 + f), of the mantissa 1 + f in [sqrt(1/2), sqrt(2)).
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe::epilogue {

// The vector of int32 with as many lanes as F.
template <class F> struct IntsOf;
template <> struct IntsOf<float> { using type = int32; };
template <int lanes> struct IntsOf<float __attribute__((ext_vector_type(lanes)))> {
  using type = int32 __attribute__((ext_vector_type(lanes)));
};
template <class F> using ints_of = typename IntsOf<F>::type;

// a * b + c; one rounding if `fused`, which is a slow library call on CPUs without such an instruction.
template <bool fused, class F> inline F mul_add(F a, F b, F c) {
  if constexpr (fused) return __builtin_elementwise_fma(a, b, c);
  else return a * b + c;
}

// a / b for b >= 1. GPUs divide by an approximate reciprocal, which can make different scores equal; the correction by
// the exact remainder gives the rounded quotient (but for b = infinity, whose remainder is NaN). CPUs divide exactly.
template <class F> inline F divide(F a, F b) {
  if constexpr (__is_same(F, float)) {
    const float reciprocal = 1.0f / b, quotient = a * reciprocal;
    const float corrected = __builtin_elementwise_fma(__builtin_elementwise_fma(-quotient, b, a), reciprocal, quotient);
    return b == __builtin_inff() ? quotient : corrected;
  } else {
    return a / b;
  }
}

template <bool fused, class F> inline F exp_1ulp(F x) {
  using I = ints_of<F>;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  // exp(-104) rounds to 0, exp(89) to infinity. Comparisons let NaN through.
  x = x < -104.0f ? F(-104.0f) : x;
  x = x > 89.0f ? F(89.0f) : x;
  const F shifted = mul_add<fused>(x, F(1.44269504088896341f), F(kRoundMagic));
  const F n = shifted - kRoundMagic;
  F r = mul_add<fused>(n, F(-kLn2High), x);  // exact: kLn2High has 9 bits
  r = mul_add<fused>(n, F(-kLn2Low), r);
  F p = F(1.0f / 5040);
  p = mul_add<fused>(p, r, F(1.0f / 720));
  p = mul_add<fused>(p, r, F(1.0f / 120));
  p = mul_add<fused>(p, r, F(1.0f / 24));
  p = mul_add<fused>(p, r, F(1.0f / 6));
  p = mul_add<fused>(p, r, F(0.5f));
  p = mul_add<fused>(p * r, r, r) + 1.0f;
  // Two factors, because 2^n alone is no normal number for the smallest and largest results.
  const I exponent = bit_cast<I>(shifted) - bit_cast<int32>(kRoundMagic);
  const I half = exponent >> 1;
  return p * bit_cast<F>((half + 127) << 23) * bit_cast<F>((exponent - half + 127) << 23);
}

template <bool fused, class F> inline F log1p_of_positive(F u) {
  using I = ints_of<F>;
  const F w = 1.0f + u;
  const I bits = bit_cast<I>(w);
  const I exponent = (bits - 0x3f3504f3) >> 23;  // of sqrt(1/2)
  const F f = bit_cast<F>(bits - (exponent << 23)) - 1.0f;
  const F s = f / (2.0f + f), z = s * s;
  F p = F(2.0f / 11);
  p = mul_add<fused>(p, z, F(2.0f / 9));
  p = mul_add<fused>(p, z, F(2.0f / 7));
  p = mul_add<fused>(p, z, F(2.0f / 5));
  p = mul_add<fused>(p, z, F(2.0f / 3));
  F count;
  if constexpr (__is_same(F, float)) count = float(exponent);
  else count = __builtin_convertvector(exponent, F);
  const F log_of_w = mul_add<fused>(count, F(0.693147180559945f), mul_add<fused>(p * z, s, 2.0f * s));
  return log_of_w + (u - (w - 1.0f)) / w;
}

// Scores that need no other logit than their own.
template <Scoring scoring, bool fused, class F> inline F score(F x) {
  if constexpr (scoring == Scoring::sigmoid) {
    return divide(F(1.0f), 1.0f + exp_1ulp<fused>(-x));
  } else if constexpr (scoring == Scoring::sqrt_softplus) {
    const F softplus = x > 20.0f ? x : log1p_of_positive<fused>(exp_1ulp<fused>(x));
    return __builtin_elementwise_sqrt(softplus);
  } else {
    static_assert(scoring == Scoring::none, "softmax needs its whole row");
    return x;
  }
}

// sparsemixer: exp(x - m), 0 where x is not near m. Infinities and NaN are never far.
template <bool fused, class F> inline F exp_if_near(F x, F m, float jitter_eps) {
  const F size = x < 0.0f ? -x : x, e = exp_1ulp<fused>(x - m);
  return m - x > 2.0f * jitter_eps * (size > m ? size : m) ? F(0.0f) : e;
}

constexpr int32 kNoKey = -2147483647 - 1;  // below every number's key

// Integers in the order of the numbers: -0 equals 0, NaN is the largest as in torch.topk.
template <class F> inline ints_of<F> order_key(F x) {
  using I = ints_of<F>;
  const I bits = bit_cast<I>(x);
  I key = bits ^ ((bits >> 31) & 0x7fffffff);
  key = key == -1 ? I(0) : key;
  return x != x ? I(0x7fffffff) : key;
}

// The float of a key.
inline float number_of_key(int32 key) { return bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff)); }

}  // namespace jitmoe::epilogue

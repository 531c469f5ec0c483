// SPDX-License-Identifier: MIT
// What happens between the two GEMMs, on float vectors, for CPU kernels. fp32 in, fp32 out; the caller rounds.
//
//   silu(x)      = x / (1 + exp(-x))
//   gelu(x)      = x * (1 + erf(x / sqrt(2))) / 2
//   gelu_tanh(x) = x * (1 + tanh(u)) / 2 = x / (1 + exp(-2 u)),  u = sqrt(2 / pi) * (x + 0.044715 x^3)
//                  (Hendrycks and Gimpel, arXiv 1606.08415)
//   relu2(x)     = max(x, 0)^2  (So et al., arXiv 2109.08668)
//   swiglu_oai   gate / (1 + exp(-alpha gate)) * (up + 1)  (gpt-oss)
//
// All but swiglu_oai are multiplied by up. With a limit L, gate = min(gate, L) and up = clamp(up, -L, L) come first.
//
// exp: 2^n * p(r) with r = x - n ln 2 in two steps (Cody and Waite) and a Taylor polynomial of degree 6 on
// |r| <= ln 2 / 2: relative error below 3e-7. erf: Abramowitz and Stegun 7.1.26, absolute error below 1.5e-7.
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::epilogue {

using cpu::Vec;

template <int lanes> inline Vec<float, lanes> exp(Vec<float, lanes> x) {
  using F = Vec<float, lanes>;
  using I = Vec<int32, lanes>;
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  // Below, the result is a flushed denormal; above, n = 128 makes the scale infinite. Comparisons let NaN through.
  x = x < -87.3f ? F(-87.3f) : x;
  x = x > 88.8f ? F(88.8f) : x;
  const F shifted = x * kLog2E + kRoundMagic;
  const F n = shifted - kRoundMagic;
  const F r = (x - n * kLn2High) - n * kLn2Low;
  F p = F(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const I exponent = bit_cast<I>(shifted) - bit_cast<int32>(kRoundMagic);
  return p * bit_cast<F>((exponent + 127) << 23);
}

template <int lanes> inline Vec<float, lanes> erf(Vec<float, lanes> x) {
  using F = Vec<float, lanes>;
  const F magnitude = x < 0.0f ? -x : x;
  const F t = 1.0f / (1.0f + 0.3275911f * magnitude);
  F p = F(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const F positive = 1.0f - p * t * exp<lanes>(-magnitude * magnitude);
  return x < 0.0f ? -positive : positive;
}

template <Activation activation, int lanes> inline Vec<float, lanes> activate(Vec<float, lanes> x, float alpha) {
  using F = Vec<float, lanes>;
  if constexpr (activation == Activation::silu) {
    return x / (1.0f + exp<lanes>(-x));
  } else if constexpr (activation == Activation::swiglu_oai) {
    return x / (1.0f + exp<lanes>(-alpha * x));
  } else if constexpr (activation == Activation::relu2) {
    const F positive = x < 0.0f ? F(0.0f) : x;
    return positive * positive;
  } else if constexpr (activation == Activation::gelu) {
    constexpr float kInvSqrt2 = 0.70710678118654752f;
    return 0.5f * x * (1.0f + erf<lanes>(x * kInvSqrt2));
  } else {
    static_assert(activation == Activation::gelu_tanh, "no such activation");
    constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
    return x / (1.0f + exp<lanes>(-kTwoSqrt2OverPi * (x + 0.044715f * x * x * x)));
  }
}

// Numbers of an activation that a call may choose; infinity is no limit.
struct ActivationNumbers {
  float alpha;
  float limit;
};

// act(gate) * up. Comparisons let NaN through.
template <Activation activation, int lanes>
inline Vec<float, lanes> activate_gated(Vec<float, lanes> gate, Vec<float, lanes> up, ActivationNumbers numbers) {
  using F = Vec<float, lanes>;
  gate = gate > numbers.limit ? F(numbers.limit) : gate;
  up = up > numbers.limit ? F(numbers.limit) : up;
  up = up < -numbers.limit ? F(-numbers.limit) : up;
  if constexpr (activation == Activation::swiglu_oai) up = up + 1.0f;
  return activate<activation, lanes>(gate, numbers.alpha) * up;
}

// act(x), where there is no gate.
template <Activation activation, int lanes>
inline Vec<float, lanes> activate_ungated(Vec<float, lanes> x, ActivationNumbers numbers) {
  using F = Vec<float, lanes>;
  x = x > numbers.limit ? F(numbers.limit) : x;
  return activate<activation, lanes>(x, numbers.alpha);
}

}  // namespace jitmoe::epilogue

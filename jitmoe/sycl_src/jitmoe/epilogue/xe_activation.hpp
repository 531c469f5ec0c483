// SPDX-License-Identifier: MIT
// Activations on the GPU, fp32 in and out; the caller rounds. L = swiglu_limit, a = swiglu_alpha:
//
//   gate = min(gate, L), up = min(max(up, -L), L)    if has_limit; NaN stays NaN
//   silu(x)      = x / (1 + exp(-x))
//   gelu(x)      = x / 2 * (1 + erf(x / sqrt(2)))
//   gelu_tanh(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) = x * sigmoid(2 sqrt(2 / pi) * (...))
//   relu2(x)     = max(x, 0)^2
//   result       = act(gate) * up, act(x) where there is no up; swiglu_oai: gate * sigmoid(a gate) * (up + 1)
//
// exp2 is the math unit's instruction (relative error about 2^-21, far below the 16-bit rounding that follows).
#pragma once

#include <jitmoe/arch/sub_group.hpp>

namespace jitmoe::epilogue {

inline float exp2_native(float x) {
#ifdef __SYCL_DEVICE_ONLY__
  return __spirv_ocl_native_exp2(x);
#else
  return x;
#endif
}

constexpr float kLog2E = 1.4426950408889634f;

// Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7. The built-in erf is exact to the last bits, but twice as
// long, and its temporaries do not fit beside the accumulators of the 128-GRF mode.
inline float erf(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float t = 1.0f / (1.0f + 0.3275911f * magnitude);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float positive = 1.0f - p * t * exp2_native(-kLog2E * magnitude * magnitude);
  return x < 0.0f ? -positive : positive;
}

// 1 / (1 + exp(-x)); exp2 overflows to infinity for very negative x, which gives the right limit 0.
inline float sigmoid(float x) { return 1.0f / (1.0f + exp2_native(-kLog2E * x)); }

// The numbers that an activation may take.
struct ActivationNumbers {
  float alpha;
  float limit;
};

template <Activation activation> inline float xe_activate(float x, float alpha) {
  if constexpr (activation == Activation::silu) {
    return x * sigmoid(x);
  } else if constexpr (activation == Activation::gelu) {
    constexpr float kInvSqrt2 = 0.70710678118654752f;
    return 0.5f * x * (1.0f + erf(x * kInvSqrt2));
  } else if constexpr (activation == Activation::gelu_tanh) {
    constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
    return x * sigmoid(kTwoSqrt2OverPi * (x + 0.044715f * x * x * x));
  } else if constexpr (activation == Activation::swiglu_oai) {
    return x * sigmoid(alpha * x);
  } else {
    static_assert(activation == Activation::relu2);
    return x < 0.0f ? 0.0f : x * x;
  }
}

// act(gate) * up; gate_up == ungated: act(gate).
template <class Config> inline float xe_gated(float gate, float up, ActivationNumbers numbers) {
  const float limit = numbers.limit;
  if constexpr (Config::has_limit) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
  }
  const float active = xe_activate<Config::activation>(gate, numbers.alpha);
  if constexpr (Config::gate_up == GateUp::ungated) return active;
  else return active * (Config::activation == Activation::swiglu_oai ? up + 1.0f : up);
}

// Row of w1 and of its bias that half q of column n comes from (the rows of w1_up follow those of w1).
template <GateUp gate_up> inline int32 w1_row(int32 n, int32 q, int32 intermediate_size) {
  if constexpr (gate_up == GateUp::interleaved) return 2 * n + q;
  else return gate_up == GateUp::ungated ? n : n + q * intermediate_size;
}

}  // namespace jitmoe::epilogue

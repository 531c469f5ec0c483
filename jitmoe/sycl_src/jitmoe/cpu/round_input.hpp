// SPDX-License-Identifier: MIT
// Rounding of inputs to a quantized kind, as floats that hold its numbers exactly.
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

constexpr float largest(InputQuant kind) {
  return kind == InputQuant::int8 ? 127.0f : kind == InputQuant::e4m3 ? 448.0f : 57344.0f;
}

// x rounded to the nearest number of `kind`, ties to even, clamped to its range. NaN stays NaN (0 as int8).
template <InputQuant kind, int lanes> inline Vec<float, lanes> round_input(Vec<float, lanes> x) {
  using F = Vec<float, lanes>;
  constexpr float most = largest(kind);
  x = x > most ? F(most) : x;
  x = x < -most ? F(-most) : x;
  constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  if constexpr (kind == InputQuant::int8) {
    return (x + kRoundMagic) - kRoundMagic;
  } else {
    // Adding 1.5 * 2^23 units of the last place rounds to that place: 2^(exponent - mantissa bits), the exponent at
    // least that of the smallest normal number.
    constexpr int mantissa = kind == InputQuant::e4m3 ? 3 : 2;
    constexpr uint32 min_exponent = kind == InputQuant::e4m3 ? 127 - 6 : 127 - 14;
    using U = Vec<uint32, lanes>;
    U exponent = (bit_cast<U>(x) >> 23) & 0xffu;
    exponent = exponent < min_exponent ? U(min_exponent) : exponent;
    const F magic = bit_cast<F>(((exponent + (23 - mantissa)) << 23) | 0x400000u);
    return (x + magic) - magic;
  }
}

}  // namespace jitmoe::cpu

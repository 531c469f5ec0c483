// SPDX-License-Identifier: MIT
// Rounding of inputs to numbers of a kind: int8 or FP8, because the caller asked for it, or 16-bit fixed point, which int8
// weights are multiplied with on tiles (amx_codes.hpp). Results are floats that hold these numbers exactly.
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

template <DType kind> constexpr float largest() {
  if constexpr (kind == DType::int16) return 32767.0f;
  else if constexpr (kind == DType::int8) return 127.0f;
  else if constexpr (kind == DType::e4m3) return 448.0f;
  else return 57344.0f;
}

// The scale of numbers whose largest magnitude is `most`. That of int8 and FP8 is 1 where `most` is 0. That of 16-bit fixed
// point is a power of two, so that every bf16 of at least a 128th of the largest number is exact; at least 2^-100, as
// products of smaller ones and weight scales are subnormal, which takes a hundred cycles; NaN where `most` is infinite.
template <DType kind, int lanes> inline Vec<float, lanes> input_scale(Vec<float, lanes> most) {
  using F = Vec<float, lanes>;
  if constexpr (kind == DType::int16) {
    using U = Vec<uint32, lanes>;
    const U exponent = (bit_cast<U>(most) >> 23) & 0xffu, least = 127 - 100 + 14;
    const U power = (exponent < least ? least : exponent) - 14u;
    const F scale = bit_cast<F>(power << 23);
    return exponent == 255u ? F(__builtin_nanf("")) : scale;
  } else {
    return most == 0.0f ? F(1.0f) : most / largest<kind>();
  }
}

// x rounded to the nearest number of `kind`, ties to even, clamped to its range. NaN stays NaN (0 as an integer).
template <DType kind, int lanes> inline Vec<float, lanes> round_input(Vec<float, lanes> x) {
  using F = Vec<float, lanes>;
  constexpr float most = largest<kind>();
  x = x > most ? F(most) : x;
  x = x < -most ? F(-most) : x;
  constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  if constexpr (kind == DType::int16 || kind == DType::int8) {
    return (x + kRoundMagic) - kRoundMagic;
  } else {
    // Adding 1.5 * 2^23 units of the last place rounds to that place: 2^(exponent - mantissa bits), the exponent at
    // least that of the smallest normal number.
    constexpr int mantissa = kind == DType::e4m3 ? 3 : 2;
    constexpr uint32 min_exponent = kind == DType::e4m3 ? 127 - 6 : 127 - 14;
    using U = Vec<uint32, lanes>;
    U exponent = (bit_cast<U>(x) >> 23) & 0xffu;
    exponent = exponent < min_exponent ? U(min_exponent) : exponent;
    const F magic = bit_cast<F>(((exponent + (23 - mantissa)) << 23) | 0x400000u);
    return (x + magic) - magic;
  }
}

// A 16-bit fixed-point number is 256 high + low: a signed and an unsigned byte, which tiles multiply by themselves
// (Dot::int16). The high bytes of 64 numbers lie before their low bytes.
constexpr int kPlane = 64;

}  // namespace jitmoe::cpu

// SPDX-License-Identifier: MIT
// FP8 as bf16 by bit matrices, 128 codes at a time: each bit of both bytes of the bf16 is a bit of the code or the inverse of
// one, unless the code is a zero, subnormal, infinite or NaN. For CPUs with GFNI (Intel SDM volume 2, GF2P8AFFINEQB).
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

// Bytes of both: low halves of each 16 interleaved, or high halves.
inline Vec<uint32, 16> interleave_low(Vec<uint32, 16> a, Vec<uint32, 16> b) {
  Vec<uint32, 16> result = a;
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpunpcklbw %2, %1, %0" : "=v"(result) : "v"(a), "v"(b));
#else
  (void)b;
#endif
  return result;
}
inline Vec<uint32, 16> interleave_high(Vec<uint32, 16> a, Vec<uint32, 16> b) {
  Vec<uint32, 16> result = a;
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpunpckhbw %2, %1, %0" : "=v"(result) : "v"(a), "v"(b));
#else
  (void)b;
#endif
  return result;
}

// Each byte as bits: row i of the matrix says which bits of it add up, modulo 2, to bit i of the result, row 7 in the lowest
// byte; then those of `flip` are inverted (GF2P8AFFINEQB).
template <int flip> inline Vec<uint32, 16> affine_bits(Vec<uint32, 16> bytes, uint64 matrix) {
  Vec<uint32, 16> result = bytes;
#ifdef __SYCL_DEVICE_ONLY__
  asm("vgf2p8affineqb %3, %2, %1, %0" : "=v"(result) : "v"(bytes), "v"(Vec<uint64, 8>(matrix)), "n"(flip));
#else
  (void)matrix;
#endif
  return result;
}

// Whether any of 128 bytes, doubled without their top bit, is not in [first, first + count).
inline bool any_outside(Vec<uint32, 16> a, Vec<uint32, 16> b, uint32 first, uint32 count) {
  uint64 mask = 0;
#ifdef __SYCL_DEVICE_ONLY__
  Vec<uint32, 16> most, other;
  asm("vpaddb %3, %3, %1\n\tvpaddb %4, %4, %2\n\tvpsubb %5, %1, %1\n\tvpsubb %5, %2, %2\n\t"
      "vpmaxub %2, %1, %1\n\tvpcmpnltub %6, %1, %%k1\n\tkmovq %%k1, %0"
      : "=r"(mask), "=&v"(most), "=&v"(other)
      : "v"(a), "v"(b), "v"(Vec<uint32, 16>(first * 0x01010101u)), "v"(Vec<uint32, 16>(count * 0x01010101u))
      : "k1");
#else
  (void)a, (void)b, (void)first, (void)count;
#endif
  return mask != 0;
}

template <Encoding encoding> struct Fp8Bits {
  using units = Vec<uint32, 16>;
  static constexpr bool is_e4m3 = encoding == Encoding::e4m3;

  // Makes pairs of 128 codes, in the order of interleave_low and interleave_high of each 64; false, and undefined, where some
  // are no ordinary numbers.
  static bool to_bf16(const units (&codes)[2], units (&pairs)[4]) {
    if (any_outside(codes[0], codes[1], first_ordinary, first_special - first_ordinary)) return false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const units low = affine_bits<0>(codes[half], low_bits), high = affine_bits<bias_bits>(codes[half], high_bits);
      pairs[2 * half] = interleave_low(low, high);
      pairs[2 * half + 1] = interleave_high(low, high);
    }
    return true;
  }

  // Pairs of 128 codes in their order.
  static bool to_bf16_in_order(const uint8* from, units (&pairs)[4]) {
    units codes[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // what interleave_low takes from the first half, interleave_high from the second
      const auto all = load<Vec<uint64, 8>>(from + 64 * half);
      codes[half] = bit_cast<units>(__builtin_shufflevector(all, all, 0, 4, 1, 5, 2, 6, 3, 7));
    }
    return to_bf16(codes, pairs);
  }

 private:
  // Codes from the smallest with an exponent up to those of infinities and NaN, doubled.
  static constexpr uint32 first_ordinary = is_e4m3 ? 0x10 : 0x08, first_special = is_e4m3 ? 0xfe : 0xf8;
  // Bytes of bf16 as sums of bits of the code (affine_bits). The exponent e of E4M3 plus the difference of the biases, 120,
  // has the bits e3, four times not e3, e2, e1, e0; that of E5M2, plus 112, has e4, three times not e4, e3 to e0.
  static constexpr uint64 high_bits = is_e4m3 ? 0x1020404040404080 : 0x0810204040404080;
  static constexpr int bias_bits = is_e4m3 ? 0x3c : 0x38;
  static constexpr uint64 low_bits = is_e4m3 ? 0x01020408 : 0x010204;
};

}  // namespace jitmoe::cpu

// SPDX-License-Identifier: MIT
// Weights as units of `Simd` (simd.hpp), from elements or from codes of a quantized format. Rows are addressed by bytes.
//
//   bits          of one element of K
//   direct        whether memory holds units as they are used
//   load(at, z)   one vector of units from the step * bits / 8 bytes at `at`; z is the zero point of the block
//   zero(byte)    what `load` takes as z
//
// A unit of floats holds the code's value. Pairs of bf16 hold it exactly too: integers up to 256, all of FP8 and FP4. So do
// pairs of fp16, which are made here of 8-bit codes only (4 bits: scaled_codes.hpp). Scales are applied to sums, later.
// Quads hold int8 codes + 128 (see dot_int8).
//
// Pairs of 4-bit codes are looked up in a table of 32 bf16 by VPERMW, which reads the five low bits of each word; values
// are 0..15 and -16..-1 there if a zero point was subtracted, else the 16 values twice, so that bit 4 may be anything.
// FP8 becomes bf16 by moving exponent and mantissa and adding the difference of the biases; what has no such form
// (subnormals, infinities, NaN) is looked up by its five low bits.
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

constexpr int code_bits(Encoding encoding) {
  return encoding == Encoding::int4 || encoding == Encoding::uint4 || encoding == Encoding::e2m1 ? 4 : 8;
}

// Elements of S::dtype.
template <class S_> struct Elements {
  using S = S_;
  static constexpr int bits = 8 * int(sizeof(typename S::element));
  static constexpr bool direct = S::direct || S::quads;
  static constexpr int step_bytes = S::step * bits / 8;

  static uint32 zero(uint8) { return 0; }
  static typename S::units load(const uint8* at, uint32) {
    return S::load_whole(reinterpret_cast<const typename S::element*>(at));
  }
};

// result = index's words looked up in 32 words.
inline Vec<uint32, 16> look_up(Vec<uint32, 16> index, Vec<uint32, 16> table) {
  Vec<uint32, 16> result = index;
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpermw %2, %1, %0" : "=v"(result) : "v"(index), "v"(table));
#else
  (void)table;
#endif
  return result;
}

// Words a + b.
inline Vec<uint32, 16> add_words(Vec<uint32, 16> a, Vec<uint32, 16> b) {
  Vec<uint32, 16> result = a;
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpaddw %2, %1, %0" : "=v"(result) : "v"(a), "v"(b));
#else
  (void)b;
#endif
  return result;
}

// `value`, with those words looked up by `index` instead whose key is at least `limit` (unsigned).
inline Vec<uint32, 16> look_up_some(Vec<uint32, 16> value, Vec<uint32, 16> key, Vec<uint32, 16> limit,
                                    Vec<uint32, 16> index, Vec<uint32, 16> table) {
  Vec<uint32, 16> result = value;
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpcmpnltuw %3, %2, %%k1\n\tvpermw %5, %4, %0%{%%k1%}"
      : "=v"(result)
      : "0"(value), "v"(key), "v"(limit), "v"(index), "v"(table)
      : "k1");
#else
  (void)key, (void)limit, (void)index, (void)table;
#endif
  return result;
}

// 32 bf16 or fp16, rounded to nearest even: those of a, then those of b.
template <DType dtype = DType::bf16> inline Vec<uint32, 16> join_floats(Vec<float, 16> a, Vec<float, 16> b) {
  if constexpr (dtype == DType::fp16) {
    const auto low = bit_cast<Vec<uint32, 8>>(__builtin_convertvector(a, Vec<_Float16, 16>));
    const auto high = bit_cast<Vec<uint32, 8>>(__builtin_convertvector(b, Vec<_Float16, 16>));
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  Vec<uint32, 16> result = bit_cast<Vec<uint32, 16>>(a);
#ifdef __SYCL_DEVICE_ONLY__
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(result) : "v"(a), "v"(b));
#else
  (void)b;
#endif
  return result;
}

// 32 4-bit codes as words whose four low bits they are. The fifth may be anything.
inline Vec<uint32, 16> four_bit_indices(const uint8* at) {
  const auto bytes = __builtin_convertvector(load<Vec<uint8, 16>>(at), Vec<uint32, 16>);
  return bytes | (bytes << 12);
}

// The values of the 16 codes; those from which a zero point will be subtracted are 0..15.
template <Encoding encoding, bool has_zero_point> inline Vec<float, 16> four_bit_values() {
  if constexpr (encoding == Encoding::e2m1)
    return {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  else if constexpr (encoding == Encoding::int4)
    return {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
  else if constexpr (has_zero_point)
    return {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  else
    return {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
}

// 32 bytes as sign-extended words.
inline Vec<uint32, 16> sign_extended(const uint8* at) {
  const auto bytes = load<Vec<uint32, 8>>(at);
  Vec<uint32, 16> words(0u);
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpmovsxbw %1, %0" : "=v"(words) : "v"(bytes));
#else
  (void)bytes;
#endif
  return words;
}

// 16 int8 as floats.
inline Vec<float, 16> int8_floats(const uint8* at) {
  return __builtin_convertvector(load<Vec<int8, 16>>(at), Vec<float, 16>);
}

// FP8 by its shape. The tables are for look_up_some.
//
// For scaled codes (scaled_codes.hpp): all mantissas with the smallest exponent but one, times 2 to the bias of that
// exponent, beside all subnormals, in 16 floats; and what is made of their 16 words.
template <Encoding> struct Fp8;
template <> struct Fp8<Encoding::e4m3> {
  static constexpr int shift = 4;                       // from its mantissa to that of bf16
  static constexpr uint32 bias = (127 - 7) << 7;        // of exponents, in bf16
  static constexpr uint32 first_special = 0x7f << 4;    // the smallest magnitude, shifted, that is no ordinary number
  static constexpr float subnormal = 1.0f / 512;        // the smallest magnitude
  static Vec<uint32, 16> table() {                      // m / 512 for m = 0..7; 31: NaN
    return {0x3b000000, 0x3bc03b80, 0x3c203c00, 0x3c603c40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x7fc00000};
  }
  static Vec<uint32, 16> table_is_subnormal() {
    return {0xffff0000, ~0u, ~0u, ~0u, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  }
  static Vec<float, 16> mantissas_and_subnormals() {
    constexpr float m = 1.0f / 1024, s = subnormal;
    return {8 * m, 9 * m, 10 * m, 11 * m, 12 * m, 13 * m, 14 * m, 15 * m, 0, s, 2 * s, 3 * s, 4 * s, 5 * s, 6 * s, 7 * s};
  }
  static Vec<uint32, 16> repeat_mantissas(Vec<uint32, 16> v) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
  }
  static Vec<uint32, 16> repeat_subnormals(Vec<uint32, 16> v) {
    return __builtin_shufflevector(v, v, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  }
  static Vec<uint32, 16> minus_mantissas() {  // -(m << shift)
    return repeat_mantissas({0xfff00000, 0xffd0ffe0, 0xffb0ffc0, 0xff90ffa0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  }
  static Vec<uint32, 16> not_finite() { return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x7fc00000}; }
};
template <> struct Fp8<Encoding::e5m2> {
  static constexpr int shift = 5;
  static constexpr uint32 bias = (127 - 15) << 7;
  static constexpr uint32 first_special = 0x7c << 5;
  static constexpr float subnormal = 1.0f / 65536;
  static Vec<uint32, 16> table() {  // m / 65536 for m = 0..3; 28: infinity; 29..31: NaN
    return {0x37800000, 0x38403800, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x7fc07f80, 0x7fc07fc0};
  }
  static Vec<uint32, 16> table_is_subnormal() { return {0xffff0000, ~0u, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}; }
  static Vec<float, 16> mantissas_and_subnormals() {
    constexpr float m = 1.0f / 131072, s = subnormal;
    return {4 * m, 5 * m, 6 * m, 7 * m, 0, s, 2 * s, 3 * s, 0, 0, 0, 0, 0, 0, 0, 0};
  }
  static Vec<uint32, 16> repeat_mantissas(Vec<uint32, 16> v) {
    return __builtin_shufflevector(v, v, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1);
  }
  static Vec<uint32, 16> repeat_subnormals(Vec<uint32, 16> v) {
    return __builtin_shufflevector(v, v, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3);
  }
  static Vec<uint32, 16> minus_mantissas() {
    return repeat_mantissas({0xffe00000, 0xffa0ffc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
  }
  static Vec<uint32, 16> not_finite() {
    return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x7fc07f80, 0x7fc07fc0};
  }
};

// The value of FP8 codes in the low bytes.
template <Encoding encoding, int lanes> inline Vec<float, lanes> fp8_floats(Vec<uint32, lanes> code) {
  using F = Vec<float, lanes>;
  using Form = Fp8<encoding>;
  constexpr int mantissa = encoding == Encoding::e4m3 ? 3 : 2;
  const Vec<uint32, lanes> magnitude = code & 0x7fu;
  const auto moved = bit_cast<F>((magnitude << (23 - mantissa)) + (Form::bias << 16));
  const F small = __builtin_convertvector(magnitude, F) * Form::subnormal;
  F value = magnitude < (1u << mantissa) ? small : moved;
  if constexpr (encoding == Encoding::e5m2) value = magnitude == 0x7cu ? F(__builtin_inff()) : value;
  constexpr uint32 first_nan = encoding == Encoding::e5m2 ? 0x7d : 0x7f;
  value = magnitude >= first_nan ? F(__builtin_nanf("")) : value;
  return bit_cast<F>(bit_cast<Vec<uint32, lanes>>(value) | ((code & 0x80u) << 24));
}

// Exponent and mantissa of words that hold sign-extended FP8 codes, where bf16 has them.
template <Encoding encoding> inline Vec<uint32, 16> fp8_magnitude(Vec<uint32, 16> codes) {
  using Form = Fp8<encoding>;
  return (codes << Form::shift) & ((0x7fu << Form::shift) * 0x10001u);
}

// `value`, with what is no ordinary number looked up in `table` instead.
template <Encoding encoding>
inline Vec<uint32, 16> fp8_special(Vec<uint32, 16> value, Vec<uint32, 16> magnitude, Vec<uint32, 16> codes,
                                   Vec<uint32, 16> table) {
  using U = Vec<uint32, 16>;
  const U key = add_words(magnitude, U(0xff80ff80u));  // subnormals wrap around
  return look_up_some(value, key, U((Fp8<encoding>::first_special - 0x80u) * 0x10001u), codes, table);
}

// Words that hold sign-extended FP8 codes, as bf16.
template <Encoding encoding> inline Vec<uint32, 16> fp8_pairs(Vec<uint32, 16> codes) {
  using Form = Fp8<encoding>;
  const Vec<uint32, 16> magnitude = fp8_magnitude<encoding>(codes);
  const auto value = fp8_special<encoding>(magnitude + Form::bias * 0x10001u, magnitude, codes, Form::table());
  return value | (codes & 0x80008000u);
}

// The same as fp16, of which E5M2 is the upper half.
template <Encoding encoding> inline Vec<uint32, 16> fp8_fp16_pairs(Vec<uint32, 16> codes) {
  using U = Vec<uint32, 16>;
  if constexpr (encoding == Encoding::e5m2) {
    return (codes << 8) & 0xff00ff00u;
  } else {
    const U special = {0x18000000, 0x1e001c00, 0x21002000, 0x23002200, 0, 0, 0, 0,  // m / 512 for m = 0..7
                       0, 0, 0, 0, 0, 0, 0, 0x7e000000};                            // 31: NaN
    constexpr uint32 first_normal = 1 << 10, first_special = 0x7f << 7, bias = (15 - 7) << 10;
    const U magnitude = (codes << 7) & (first_special * 0x10001u);
    const U key = add_words(magnitude, U((0x10000u - first_normal) * 0x10001u));  // subnormals wrap around
    return look_up_some(magnitude + bias * 0x10001u, key, U((first_special - first_normal) * 0x10001u), codes, special) |
           (codes & 0x80008000u);
  }
}

// Codes of a quantized format.
template <class S_, Encoding encoding, bool has_zero_point> struct Codes {
  using S = S_;
  using units = typename S::units;
  using floats = typename S::floats;
  static constexpr int bits = code_bits(encoding);
  static constexpr bool direct = false;
  static constexpr int step_bytes = S::step * bits / 8;
  static_assert(!S::quads || encoding == Encoding::int8, "quads are int8 codes");

  static uint32 zero(uint8 point) {
    if constexpr (S::pairs) return (32u - point) * 0x10001u;  // added to the code: the table's index, modulo 32
    else return bit_cast<uint32>(float(point));
  }

  static units load(const uint8* at, uint32 zero) {
    if constexpr (S::quads) return cpu::load<units>(at) ^ 0x80808080u;
    else if constexpr (S::pairs) return pairs(at, zero);
    else return bit_cast<units>(values(at, zero));
  }

  // Pairs of the 16 values, twice, and where they are not zero.
  static units table() {
    if constexpr (encoding == Encoding::int4)  // 0..7, -8..-1
      return {0x3f800000, 0x40404000, 0x40a04080, 0x40e040c0, 0xc0e0c100, 0xc0a0c0c0, 0xc040c080, 0xbf80c000,
              0x3f800000, 0x40404000, 0x40a04080, 0x40e040c0, 0xc0e0c100, 0xc0a0c0c0, 0xc040c080, 0xbf80c000};
    else if constexpr (encoding == Encoding::uint4)  // -8..7
      return {0xc0e0c100, 0xc0a0c0c0, 0xc040c080, 0xbf80c000, 0x3f800000, 0x40404000, 0x40a04080, 0x40e040c0,
              0xc0e0c100, 0xc0a0c0c0, 0xc040c080, 0xbf80c000, 0x3f800000, 0x40404000, 0x40a04080, 0x40e040c0};
    else  // 0 0.5 1 1.5 2 3 4 6 and their negatives
      return {0x3f000000, 0x3fc03f80, 0x40404000, 0x40c04080, 0xbf008000, 0xbfc0bf80, 0xc040c000, 0xc0c0c080,
              0x3f000000, 0x3fc03f80, 0x40404000, 0x40c04080, 0xbf008000, 0xbfc0bf80, 0xc040c000, 0xc0c0c080};
  }
  static units table_not_zero() {
    constexpr uint32 half = 0xffff0000u;
    if constexpr (encoding == Encoding::int4)
      return {half, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, half, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
    else if constexpr (encoding == Encoding::uint4)
      return {~0u, ~0u, ~0u, ~0u, half, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, half, ~0u, ~0u, ~0u};
    else
      return {half, ~0u, ~0u, ~0u, half, ~0u, ~0u, ~0u, half, ~0u, ~0u, ~0u, half, ~0u, ~0u, ~0u};
  }

 private:
  static floats values(const uint8* at, uint32 zero) {
    using I = Vec<int32, S::lanes>;
    if constexpr (encoding == Encoding::int8) {
      return __builtin_convertvector(cpu::load<Vec<int8, S::lanes>>(at), floats);
    } else if constexpr (bits == 8) {
      return fp8_floats<encoding, S::lanes>(__builtin_convertvector(cpu::load<Vec<uint8, S::lanes>>(at), units));
    } else {
      const auto bytes = __builtin_convertvector(cpu::load<Vec<uint8, S::lanes / 2>>(at), Vec<uint16, S::lanes / 2>);
      const auto codes = bit_cast<Vec<uint8, S::lanes>>((bytes | (bytes << 4)) & uint16(0x0f0f));
      const I code = __builtin_convertvector(codes, I);
      if constexpr (encoding == Encoding::int4) {
        return __builtin_convertvector((code ^ 8) - 8, floats);
      } else if constexpr (encoding == Encoding::uint4) {
        if constexpr (has_zero_point) return __builtin_convertvector(code, floats) - floats(bit_cast<float>(zero));
        else return __builtin_convertvector(code - 8, floats);
      } else {
        const I magnitude = code & 7;
        const auto moved = bit_cast<floats>((magnitude << 22) + (126 << 23));
        const floats value = magnitude < 2 ? __builtin_convertvector(magnitude, floats) * 0.5f : moved;
        return bit_cast<floats>(bit_cast<I>(value) | ((code & 8) << 28));
      }
    }
  }

  static units pairs(const uint8* at, uint32 zero) {
    constexpr bool fp16 = S::dtype == DType::fp16;
    static_assert(!fp16 || bits == 8, "tables of bf16");
    if constexpr (encoding == Encoding::int8) {
      return join_floats<S::dtype>(int8_floats(at), int8_floats(at + 16));
    } else if constexpr (bits == 8 && fp16) {
      return fp8_fp16_pairs<encoding>(sign_extended(at));
    } else if constexpr (bits == 8) {
      return fp8_pairs<encoding>(sign_extended(at));
    } else {
      const units codes = four_bit_indices(at);
      if constexpr (has_zero_point) return look_up((codes & 0x000f000fu) + zero, five_bit_integers());
      else return look_up(codes, table());
    }
  }

  static units five_bit_integers() {  // 0..15, -16..-1
    return {0x3f800000, 0x40404000, 0x40a04080, 0x40e040c0, 0x41104100, 0x41304120, 0x41504140, 0x41704160,
            0xc170c180, 0xc150c160, 0xc130c140, 0xc110c120, 0xc0e0c100, 0xc0a0c0c0, 0xc040c080, 0xbf80c000};
  }
};

}  // namespace jitmoe::cpu

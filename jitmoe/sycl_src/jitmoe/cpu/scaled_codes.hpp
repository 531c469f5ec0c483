// SPDX-License-Identifier: MIT
// Codes as bf16, or fp16, of value * scale, rounded to nearest. What can be done once per scale is done once:
//
//   4 bits   a table of the 16 products, which codes are looked up in
//   FP8      a table of the products of the mantissas; exponents are added to them. What has no exponent (subnormals, NaN,
//            infinities) is looked up in a table of its own, as in codes.hpp.
//   int8     products, one by one
//
// Scales that are powers of two (E8M0) are added to exponents. Both additions need products whose exponents fit; where
// scales are too small or large for that, or 0, AnyScale multiplies one by one, which is slower.
//
// fp16 has less range, so it takes only what keeps its 11 bits there: one scale for all of K, which is applied elsewhere, or
// integers and scales of fp16. Their products are multiples of the smallest number of fp16, and infinite only where the
// product is none of its numbers.
//
// Each converter is made of the scale and the zero point that some codes share, and makes a vector of 32 of them. Those of FP8
// whose scale is a power of two, or applied elsewhere, begin with bf16 that were made by bit matrices (Bits, fp8_bits.hpp), of
// 128 codes at a time, where all of these are ordinary: scaled() of 32.
#pragma once

#include <jitmoe/cpu/codes.hpp>
#include <jitmoe/cpu/fp8_bits.hpp>

namespace jitmoe::cpu {

// In the place of Bits: no bit matrices.
struct NoBits {};

// Whether all scales have exponents of -64 .. 64.
inline bool are_ordinary(Vec<float, 16> scales) {
  const Vec<uint32, 16> exponents = (bit_cast<Vec<uint32, 16>>(scales) >> 23) & 0xffu;
  uint32 others = 0;
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpcmpud $6, %2, %1, %%k1\n\tkmovw %%k1, %0"
      : "=r"(others)
      : "v"(exponents - (127u - 64u)), "v"(Vec<uint32, 16>(128u))
      : "k1");
#else
  (void)exponents;
#endif
  return others == 0;
}
template <int count> inline bool are_ordinary(const Vec<float, 16> (&scales)[count]) {
  bool all = true;
#pragma unroll
  for (const auto& vector : scales) all = all && are_ordinary(vector);
  return all;
}

// 4-bit codes with any scale.
template <Encoding encoding, bool has_zero_point, DType dtype> class ProductTable {
 public:
  using Bits = NoBits;
  ProductTable(float scale, float zero) {
    const auto products = (four_bit_values<encoding, has_zero_point>() - zero) * scale;
    table_ = join_floats<dtype>(products, products);
  }
  Vec<uint32, 16> operator()(const uint8* from) const { return look_up(four_bit_indices(from), table_); }

 private:
  Vec<uint32, 16> table_;
};

// Codes of 8 bits with any scale.
template <class W> class AnyScale {
 public:
  using Bits = NoBits;
  AnyScale(float scale, float) : scale_(scale) {}
  Vec<uint32, 16> operator()(const uint8* from) const {
    const Vec<uint32, 16> pairs = W::load(from, 0);
    const auto even = bf16_bits<16>(bit_cast<Vec<float, 16>>(pairs << 16) * scale_);
    const auto odd = bf16_bits<16>(bit_cast<Vec<float, 16>>(pairs & 0xffff0000u) * scale_);
    return even | (odd << 16);
  }

 private:
  float scale_;
};

// int8 with any scale.
template <DType dtype> class ScaledInt8 {
 public:
  using Bits = NoBits;
  ScaledInt8(float scale, float) : scale_(scale) {}
  Vec<uint32, 16> operator()(const uint8* from) const {
    return join_floats<dtype>(int8_floats(from) * scale_, int8_floats(from + 16) * scale_);
  }

 private:
  float scale_;
};

// Codes of 8 bits whose scale is applied elsewhere.
template <class W, class Bits_> class Unscaled {
 public:
  using Bits = Bits_;
  Unscaled(float, float) {}
  Vec<uint32, 16> operator()(const uint8* from) const { return W::load(from, 0); }
  static Vec<uint32, 16> scaled(Vec<uint32, 16> pairs) { return pairs; }
};

// FP8 with an ordinary scale.
template <Encoding encoding> class MantissaTable {
  using Form = Fp8<encoding>;

 public:
  using Bits = NoBits;
  MantissaTable(float scale, float) {
    const auto products = Form::mantissas_and_subnormals() * scale;
    const auto both = join_floats(products, products);
    mantissas_ = add_words(Form::repeat_mantissas(both), Form::minus_mantissas());
    special_ = Form::repeat_subnormals(both) | Form::not_finite();
  }
  Vec<uint32, 16> operator()(const uint8* from) const {
    const auto codes = sign_extended(from);
    const auto magnitude = fp8_magnitude<encoding>(codes);
    const auto value = add_words(look_up(codes, mantissas_), magnitude);
    return fp8_special<encoding>(value, magnitude, codes, special_) ^ (codes & 0x80008000u);
  }

 private:
  Vec<uint32, 16> mantissas_, special_;
};

// What an ordinary power of two adds to each of two words of bf16.
template <int lanes> inline Vec<uint32, lanes> exponent_words(Vec<float, lanes> powers) {
  return (((bit_cast<Vec<uint32, lanes>>(powers) >> 16) - (127u << 7)) & 0xffffu) * 0x10001u;
}

// FP8 and 4-bit codes with a power of two, as exponent_words.
template <class W, Encoding encoding, class Bits_> class AddedPower {
 public:
  using Bits = Bits_;
  AddedPower(float words, float) : words_(bit_cast<uint32>(words)) {
    const Vec<uint32, 16> added = words_;
    if constexpr (W::bits == 4) {
      table_ = add_words(W::table(), added & W::table_not_zero());
    } else {
      bias_ = add_words(Vec<uint32, 16>(Fp8<encoding>::bias * 0x10001u), added);
      table_ = add_words(Fp8<encoding>::table(), added & Fp8<encoding>::table_is_subnormal());
    }
  }
  Vec<uint32, 16> operator()(const uint8* from) const {
    if constexpr (W::bits == 4) {
      return look_up(four_bit_indices(from), table_);
    } else {
      const auto codes = sign_extended(from);
      const auto magnitude = fp8_magnitude<encoding>(codes);
      const auto value = add_words(magnitude, bias_);
      return fp8_special<encoding>(value, magnitude, codes, table_) | (codes & 0x80008000u);
    }
  }
  Vec<uint32, 16> scaled(Vec<uint32, 16> pairs) const { return add_words(pairs, words_); }

 private:
  Vec<uint32, 16> words_, bias_, table_;
};

// Which converters codes have: `Any`, and `Ordinary` for ordinary scales (exponent_words of them if adds_powers), and `Whole`.
template <class W, Encoding encoding, bool has_zero_point, DType scale_dtype> struct Converters {
  static constexpr DType dtype = W::S::dtype;
  static constexpr bool adds_powers = scale_dtype == DType::e8m0 && encoding != Encoding::int8 && !has_zero_point;
  static constexpr bool is_fp8 = encoding == Encoding::e4m3 || encoding == Encoding::e5m2;

  using Any = typename Conditional<W::bits == 4, ProductTable<encoding, has_zero_point, dtype>,
                                   typename Conditional<is_fp8, AnyScale<W>, ScaledInt8<dtype>>::type>::type;
  using Table = typename Conditional<is_fp8, MantissaTable<encoding>, Any>::type;
  using Bits = typename Conditional<is_fp8 && dtype == DType::bf16, Fp8Bits<encoding>, NoBits>::type;
  using Ordinary = typename Conditional<adds_powers, AddedPower<W, encoding, Bits>, Table>::type;
  using Whole = typename Conditional<W::bits == 4, Any, Unscaled<W, Bits>>::type;  // scaled elsewhere
};

}  // namespace jitmoe::cpu

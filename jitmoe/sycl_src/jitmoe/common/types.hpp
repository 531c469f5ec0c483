// SPDX-License-Identifier: MIT
// Names shared by host and kernels: fixed-width integers, the enums that specs use, 16-bit float conversions.
//
// The enums mirror jitmoe/problems/fused_moe.py, problems/formats.py, problems/routing.py and device.py value by value: rendered sources spell them as
// jitmoe::<PythonClass>::<value>, so a value without a twin here does not compile.
// Includes nothing: every header costs compile time in each kernel.
#pragma once

namespace jitmoe {

using int8 = signed char;
using uint8 = unsigned char;
using int16 = short;
using uint16 = unsigned short;
using int32 = int;
using uint32 = unsigned int;
using int64 = long long;
using uint64 = unsigned long long;

enum class DType { bf16, fp16, fp32, fp64, int32, int64, int16, int8, uint8, e4m3, e5m2, e8m0 };
enum class Layout { nk, kn };
enum class Activation { silu, gelu, gelu_tanh, swiglu_oai, relu2 };
enum class GateUp { concatenated, interleaved, separate, ungated };
enum class Encoding { int8, e4m3, e5m2, int4, uint4, e2m1 };
enum class InputQuant { int8, e4m3, e5m2 };
enum class Scoring { softmax, sigmoid, sqrt_softplus, sparsemixer, none };
enum class GroupScore { max, top2_sum };
enum class CpuIsa { generic, avx2, avx512, avx512_bf16, amx_bf16, amx_fp16 };

constexpr int num_bytes(DType dtype) {
  switch (dtype) {
    case DType::bf16:
    case DType::fp16:
    case DType::int16: return 2;
    case DType::fp32:
    case DType::int32: return 4;
    case DType::int8:
    case DType::uint8:
    case DType::e4m3:
    case DType::e5m2:
    case DType::e8m0: return 1;
    default: return 8;
  }
}

// Storage type of one element: 16-bit floats are carried as bits.
template <DType> struct Element;
template <> struct Element<DType::bf16> { using type = uint16; };
template <> struct Element<DType::fp16> { using type = uint16; };
template <> struct Element<DType::fp32> { using type = float; };
template <> struct Element<DType::fp64> { using type = double; };
template <> struct Element<DType::int32> { using type = int32; };
template <> struct Element<DType::int64> { using type = int64; };
template <> struct Element<DType::int16> { using type = int16; };
template <> struct Element<DType::int8> { using type = int8; };
template <> struct Element<DType::e8m0> { using type = uint8; };
template <DType dtype> using element_t = typename Element<dtype>::type;

template <class To, class From> inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  return __builtin_bit_cast(To, from);
}

inline float bf16_to_float(uint16 bits) { return bit_cast<float>(uint32(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN (quiet).
inline uint16 float_to_bf16(float value) {
  const uint32 bits = bit_cast<uint32>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16((bits >> 16) | 0x40u);
  return uint16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float fp16_to_float(uint16 bits) { return float(bit_cast<_Float16>(bits)); }
inline uint16 float_to_fp16(float value) { return bit_cast<uint16>(_Float16(value)); }

// 2^(bits - 127), 255 is NaN; the smallest one is subnormal.
inline float e8m0_to_float(uint8 bits) {
  return bit_cast<float>(bits == 0 ? 0x00400000u : bits == 255 ? 0x7fc00000u : uint32(bits) << 23);
}

template <DType dtype> inline float to_float(element_t<dtype> value) {
  if constexpr (dtype == DType::bf16) return bf16_to_float(value);
  else if constexpr (dtype == DType::fp16) return fp16_to_float(value);
  else if constexpr (dtype == DType::e8m0) return e8m0_to_float(value);
  else return float(value);
}

template <DType dtype> inline element_t<dtype> from_float(float value) {
  if constexpr (dtype == DType::bf16) return float_to_bf16(value);
  else if constexpr (dtype == DType::fp16) return float_to_fp16(value);
  else return element_t<dtype>(value);
}

template <bool first, class A, class B> struct Conditional { using type = A; };
template <class A, class B> struct Conditional<false, A, B> { using type = B; };

// A compile-time number as a function argument.
template <int number> struct Int { static constexpr int value = number; };

constexpr int64 ceil_div(int64 a, int64 b) { return (a + b - 1) / b; }
constexpr int64 align_up(int64 a, int64 b) { return ceil_div(a, b) * b; }

}  // namespace jitmoe

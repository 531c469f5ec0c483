// SPDX-License-Identifier: MIT
// Number conversions and elementary functions that GPUs have as instructions.
#pragma once

#include <jitmoe/arch/sub_group.hpp>

#ifdef __SYCL_DEVICE_ONLY__
extern SYCL_EXTERNAL jitmoe::uint16 __spirv_ConvertFToBF16INTEL(float value) noexcept;
#endif

namespace jitmoe::arch {

// fp32 -> 16 bit, to nearest, ties to even. bf16: "mov :bf <- :f"; the SPIR-V built-in avoids the unresolved device
// library call that sycl::ext::oneapi::bfloat16 leaves behind, which becomes a stack call with spills.
template <bool emulated, DType dtype> inline element_t<dtype> narrow(float value) {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated && dtype == DType::bf16) return uint16(__spirv_ConvertFToBF16INTEL(value));
#endif
  return from_float<dtype>(value);
}

// Two values in one dword, the first in the low half.
template <bool emulated, DType dtype> inline uint32 narrow_pair(float low, float high) {
  return uint32(narrow<emulated, dtype>(low)) | uint32(narrow<emulated, dtype>(high)) << 16;
}

// IEEE double bits -> float, to nearest, ties to even, in integer arithmetic: few Intel GPUs have fp64 at full rate and
// some have none, and a kernel that mentions double is refused there. Results below the smallest normal float are 0.
inline float float_from_double_bits(uint64 bits) {
  const uint32 sign = uint32(bits >> 63) << 31;
  const int32 exponent = int32(bits >> 52 & 0x7ff) - 1023 + 127;
  const uint64 mantissa = bits & 0xfffffffffffffull;
  if (exponent >= 255) {
    const bool is_nan = (bits >> 52 & 0x7ff) == 0x7ff && mantissa != 0;
    return bit_cast<float>(sign | (is_nan ? 0x7fc00000u : 0x7f800000u));
  }
  if (exponent <= 0) return bit_cast<float>(sign);
  const uint64 kept = uint64(exponent) << 23 | mantissa >> 29;
  const uint64 rest = mantissa & 0x1fffffff;
  const uint64 half = 0x10000000;
  const uint64 rounded = kept + (rest > half || (rest == half && (kept & 1)));  // a carry moves into the exponent
  return bit_cast<float>(sign | uint32(rounded));
}

// Element `index` of an array of `dtype`, as float.
template <DType dtype> inline float read_float(const void* array, int64 index) {
  if constexpr (dtype == DType::fp64) return float_from_double_bits(static_cast<const uint64*>(array)[index]);
  else return to_float<dtype>(static_cast<const element_t<dtype>*>(array)[index]);
}

}  // namespace jitmoe::arch

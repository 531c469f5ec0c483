// SPDX-License-Identifier: MIT
// dpas.8x8: D[8][S] = C[8][S] + A[8][K] * B[K][S], S = sub-group size (16; 8 on dg2), K = 256 bit / element size.
//
// Operand layout per lane (t = n = lane), sub-group size 16:
//   C, D  float8 (int8 for int8 inputs): lane n, element m           = C[m][n]
//   B     8 dwords: 16-bit elements: lane n, dword i, half h         = B[2i + h][n]
//                    8-bit elements: lane n, dword i, byte h         = B[4i + h][n]
//                    tf32:           lane n, dword i                 = B[i][n]
//   A     16-bit: short8:            lane t, element m               = A[m][t]
//          8-bit: short8:            lane t, element m               = A[m][2t], A[m][2t + 1] (low byte first)
//         tf32: float4:              lane t, element i               = A[2i + t / 8][t % 8]
// Sub-group size 8 (dg2):
//   C, D, B as above with n < 8;  A 16-bit: int8: lane t, element m  = A[m][2t], A[m][2t + 1] (low half first)
// Sources: operand registers of DPAS in the Xe ISA (A: one 32 B row per repeat; B: systolic depth 8 dwords per column)
// and the operand types of the OpenCL extensions cl_intel_subgroup_matrix_multiply_accumulate{,_tf32}. The 16- and
// 8-bit layouts at sub-group size 16 agree with sycl-tla's MMA traits for Xe; tf32 and sub-group size 8 rest on the
// register image alone (a GRF row is 64 B resp. 32 B) and were never run on hardware.
//
// 16-bit products are exact in fp32. The order of the K additions inside the instruction is the hardware's own; the
// portable bodies add in ascending k.
#pragma once

#include <jitmoe/arch/sub_group.hpp>

#ifdef __SYCL_DEVICE_ONLY__
// OpenCL built-ins of the GPU compiler, resolved when the image is finished for a device.
SYCL_EXTERNAL jitmoe::arch::f32x8 intel_sub_group_bf16_bf16_matrix_mad_k16(
    jitmoe::arch::i16x8 a, jitmoe::arch::i32x8 b, jitmoe::arch::f32x8 c);
SYCL_EXTERNAL jitmoe::arch::f32x8 intel_sub_group_bf16_bf16_matrix_mad_k16(
    jitmoe::arch::i32x8 a, jitmoe::arch::i32x8 b, jitmoe::arch::f32x8 c);
SYCL_EXTERNAL jitmoe::arch::f32x8 intel_sub_group_f16_f16_matrix_mad_k16(
    jitmoe::arch::i16x8 a, jitmoe::arch::i32x8 b, jitmoe::arch::f32x8 c);
SYCL_EXTERNAL jitmoe::arch::f32x8 intel_sub_group_f16_f16_matrix_mad_k16(
    jitmoe::arch::i32x8 a, jitmoe::arch::i32x8 b, jitmoe::arch::f32x8 c);
SYCL_EXTERNAL jitmoe::arch::i32x8 intel_sub_group_i8_i8_matrix_mad_k32(
    jitmoe::arch::i16x8 a, jitmoe::arch::i32x8 b, jitmoe::arch::i32x8 c);
SYCL_EXTERNAL jitmoe::arch::f32x8 intel_sub_group_tf32_tf32_matrix_mad_k8(
    jitmoe::arch::f32x4 a, jitmoe::arch::f32x8 b, jitmoe::arch::f32x8 c);
#endif

namespace jitmoe::arch {

constexpr int32 kDpasRows = 8;  // rows of A, C and D: the repeat count

// The register type of a 16-bit A operand.
template <int32 simd> struct DpasA;
template <> struct DpasA<16> { using type = i16x8; };
template <> struct DpasA<8> { using type = i32x8; };
template <int32 simd> using dpas_a_t = typename DpasA<simd>::type;

// 16-bit inputs, fp32 accumulators, K = 16. dtype: bf16 or fp16.
template <bool emulated, int32 simd, DType dtype>
inline f32x8 dpas(dpas_a_t<simd> a, u32x8 b, f32x8 c) {
  static_assert(dtype == DType::bf16 || dtype == DType::fp16, "dpas: 16-bit floats only");
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) {
    if constexpr (dtype == DType::bf16) return intel_sub_group_bf16_bf16_matrix_mad_k16(a, bit_cast<i32x8>(b), c);
    else return intel_sub_group_f16_f16_matrix_mad_k16(a, bit_cast<i32x8>(b), c);
  }
#endif
  _Pragma("nounroll") for (int32 k = 0; k < 16; ++k) {  // keeps the CPU device's code, and its build time, small
    const float b_k = to_float<dtype>(uint16(b[k / 2] >> (k % 2 * 16)));
    _Pragma("unroll") for (int32 m = 0; m < kDpasRows; ++m) {
      uint16 a_mk;
      if constexpr (simd == 16) a_mk = uint16(shuffle(int16(a[m]), k));
      else a_mk = uint16(uint32(shuffle(int32(a[m]), k / 2)) >> (k % 2 * 16));
      c[m] += to_float<dtype>(a_mk) * b_k;
    }
  }
  return c;
}

// Signed 8-bit inputs, 32-bit integer accumulators, K = 32; sub-group size 16.
template <bool emulated> inline i32x8 dpas_int8(i16x8 a, u32x8 b, i32x8 c) {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) return intel_sub_group_i8_i8_matrix_mad_k32(a, bit_cast<i32x8>(b), c);
#endif
  for (int32 k = 0; k < 32; ++k) {
    const int32 b_k = int8(b[k / 4] >> (k % 4 * 8));
    for (int32 m = 0; m < kDpasRows; ++m) {
      const int32 a_mk = int8(uint16(shuffle(int16(a[m]), k / 2)) >> (k % 2 * 8));
      c[m] += a_mk * b_k;
    }
  }
  return c;
}

// tf32 inputs (fp32 registers whose low 13 mantissa bits are ignored), K = 8; sub-group size 16.
template <bool emulated> inline f32x8 dpas_tf32(f32x4 a, f32x8 b, f32x8 c) {
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (!emulated) return intel_sub_group_tf32_tf32_matrix_mad_k8(a, b, c);
#endif
  const auto tf32 = [](float value) { return bit_cast<float>(bit_cast<uint32>(value) & 0xffffe000u); };
  for (int32 k = 0; k < 8; ++k) {
    const float b_k = tf32(b[k]);
    for (int32 m = 0; m < kDpasRows; ++m) c[m] += tf32(shuffle(float(a[m / 2]), m % 2 * 8 + k)) * b_k;
  }
  return c;
}

}  // namespace jitmoe::arch

// SPDX-License-Identifier: MIT
// Multiplication of whole accumulators (arch/dpas.hpp: lane n, element m) at sub-group size 16.
//
//   scale_elements   element m times the factor that lane m has (upper: lane m + 8)
//   scale_lanes      every element times the lane's own factor
//
// vISA assembly, because compilers take accumulators apart to multiply their elements one by one, and then keep the
// parts and the whole alive together: 128 registers of accumulators spill.
#pragma once

#include <jitmoe/arch/sub_group.hpp>

namespace jitmoe::arch {

#ifdef __SYCL_DEVICE_ONLY__
#define JITMOE_SCALE_ROW(m, factor) "mul (M1_NM, 16) OUT(" m ",0)<1> IN(" m ",0)<1;1,0> " factor "\n"
#define JITMOE_SCALE(factor_0, factor_1, factor_2, factor_3, factor_4, factor_5, factor_6, factor_7)          \
  "{\n"                                                                                                      \
  ".decl OUT v_type=G type=F num_elts=128 alias=<%0,0>\n"                                                     \
  ".decl IN v_type=G type=F num_elts=128 alias=<%1,0>\n"                                                      \
  ".decl FACTOR v_type=G type=F num_elts=16 alias=<%2,0>\n" JITMOE_SCALE_ROW("0", factor_0)                   \
  JITMOE_SCALE_ROW("1", factor_1) JITMOE_SCALE_ROW("2", factor_2) JITMOE_SCALE_ROW("3", factor_3)             \
  JITMOE_SCALE_ROW("4", factor_4) JITMOE_SCALE_ROW("5", factor_5) JITMOE_SCALE_ROW("6", factor_6)             \
  JITMOE_SCALE_ROW("7", factor_7) "}\n"
#endif

template <bool emulated, bool upper> inline f32x8 scale_elements(f32x8 acc, float factor) {
  f32x8 out = {};
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (emulated) {
    for (int32 m = 0; m < 8; ++m) out[m] = acc[m] * shuffle(factor, m + (upper ? 8 : 0));
  } else if constexpr (upper) {
    asm(JITMOE_SCALE("FACTOR(0,8)<0;1,0>", "FACTOR(0,9)<0;1,0>", "FACTOR(0,10)<0;1,0>", "FACTOR(0,11)<0;1,0>",
                     "FACTOR(0,12)<0;1,0>", "FACTOR(0,13)<0;1,0>", "FACTOR(0,14)<0;1,0>", "FACTOR(0,15)<0;1,0>")
        : "=rw"(out) : "0"(acc), "rw"(factor));
  } else {
    asm(JITMOE_SCALE("FACTOR(0,0)<0;1,0>", "FACTOR(0,1)<0;1,0>", "FACTOR(0,2)<0;1,0>", "FACTOR(0,3)<0;1,0>",
                     "FACTOR(0,4)<0;1,0>", "FACTOR(0,5)<0;1,0>", "FACTOR(0,6)<0;1,0>", "FACTOR(0,7)<0;1,0>")
        : "=rw"(out) : "0"(acc), "rw"(factor));
  }
#endif
  return out;
}

template <bool emulated> inline f32x8 scale_lanes(f32x8 acc, float factor) {
  f32x8 out = {};
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (emulated) {
    out = acc * factor;
  } else {
    asm(JITMOE_SCALE("FACTOR(0,0)<1;1,0>", "FACTOR(0,0)<1;1,0>", "FACTOR(0,0)<1;1,0>", "FACTOR(0,0)<1;1,0>",
                     "FACTOR(0,0)<1;1,0>", "FACTOR(0,0)<1;1,0>", "FACTOR(0,0)<1;1,0>", "FACTOR(0,0)<1;1,0>")
        : "=rw"(out) : "0"(acc), "rw"(factor));
  }
#endif
  return out;
}

#ifdef __SYCL_DEVICE_ONLY__
#undef JITMOE_SCALE_ROW
#undef JITMOE_SCALE
#endif

}  // namespace jitmoe::arch

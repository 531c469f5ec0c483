// SPDX-License-Identifier: MIT
// Quantized weight codes -> fp16 A operands of dpas, in registers, sub-group size 16.
//
// Codes arrive as bytes: lane t, element m = byte t of row m's 16 (arch/block2d.hpp, load of 8-bit elements). Of 8-bit codes
// that is k = t of 16; of 4-bit codes k = 2t (low nibble) and 2t + 1 (high nibble) of 32. So one row of bytes makes
// one A operand (8 bits), or two, of the even and of the odd k (4 bits); tokens are packed in the same order.
//
// Every value below is exact in fp16, and normal unless noted: whatever dpas does to subnormal inputs does not matter.
//   e4m3   byte << 7, sign moved to the top: value * 2^-8, subnormals included; times 2^8. The NaN codes 0x7f and 0xff
//          read as +-480.
//   e5m2   byte << 8 is the fp16 number: infinities and NaNs stay. Magnitudes below 2^-14 are subnormal in fp16, too.
//   int8   (byte ^ 0x80) | 0x6400 is 1024 + 128 + value; minus 1152
//   int4   0x6400 | (low nibble ^ 8) is 1024 + 8 + value; 0x5400 | (high nibble ^ 8) << 4 is 64 + 8 + value
//   uint4  without the ^ 8; minus 1024 + 8 and 64 + 8, or minus 64 + zero point with both nibbles in the high place
//   e2m1   sign to the top, the other bits to 9..11: value * 2^-14, subnormals included; times 2^14
// fp16 subnormals are kept by the ALU here: compilers set that mode for half (seen as bit 10 of cr0 in the machine code).
//
// The instructions work on 32 16-bit numbers, two rows at once, which the lanes of a sub-group cannot say; so they are
// vISA assembly. Each is elementwise, so the portable bodies are the same formulas per element.
#pragma once

#include <jitmoe/arch/sub_group.hpp>

namespace jitmoe::arch {

typedef uint8 u8x8 __attribute__((vector_size(8)));

constexpr bool is_4_bit(Encoding encoding) {
  return encoding == Encoding::int4 || encoding == Encoding::uint4 || encoding == Encoding::e2m1;
}

// The value of one code as fp16 bits; high: the byte's high nibble. uint4: minus `zero_point`.
template <Encoding encoding> inline uint16 decode(uint8 byte, bool high, int32 zero_point = 8) {
  if constexpr (encoding == Encoding::e5m2) {
    return uint16(byte << 8);
  } else if constexpr (encoding == Encoding::e4m3) {
    const uint16 scaled = uint16((byte & 0x80) << 8 | (byte & 0x7f) << 7);
    return float_to_fp16(fp16_to_float(scaled) * 256.0f);
  } else if constexpr (encoding == Encoding::int8) {
    return float_to_fp16(float(int8(byte)));
  } else {
    const int32 nibble = high ? byte >> 4 : byte & 15;
    if constexpr (encoding == Encoding::e2m1) {
      const uint16 scaled = uint16((nibble & 8) << 12 | (nibble & 7) << 9);
      return float_to_fp16(fp16_to_float(scaled) * 16384.0f);
    } else {
      return float_to_fp16(float(encoding == Encoding::int4 ? (nibble ^ 8) - 8 : nibble - zero_point));
    }
  }
}

#ifdef __SYCL_DEVICE_ONLY__
// Operand declarations and four instructions over an A operand's 4 registers (8 rows of 16 words). The 2 registers of
// bytes hold 4 rows each.
#define JITMOE_BYTES_IN(number)                                            \
  ".decl IN_B v_type=G type=B num_elts=128 alias=<%" number ",0>\n"        \
  ".decl IN_UB v_type=G type=UB num_elts=128 alias=<%" number ",0>\n"
#define JITMOE_WORDS_OUT(name, number)                                     \
  ".decl " name "_W v_type=G type=W num_elts=128 alias=<%" number ",0>\n"  \
  ".decl " name "_UW v_type=G type=UW num_elts=128 alias=<%" number ",0>\n" \
  ".decl " name "_HF v_type=G type=HF num_elts=128 alias=<%" number ",0>\n"
#define JITMOE_EACH(operation, out, before, in, after)                                   \
  operation " (M1_NM, 32) " out "(0,0)<1> " before in "(0,0)<1;1,0>" after "\n"          \
  operation " (M1_NM, 32) " out "(1,0)<1> " before in "(1,0)<1;1,0>" after "\n"          \
  operation " (M1_NM, 32) " out "(2,0)<1> " before in "(2,0)<1;1,0>" after "\n"          \
  operation " (M1_NM, 32) " out "(3,0)<1> " before in "(3,0)<1;1,0>" after "\n"
#define JITMOE_EACH_BYTE(operation, out, before, in, after)                              \
  operation " (M1_NM, 32) " out "(0,0)<1> " before in "(0,0)<1;1,0>" after "\n"          \
  operation " (M1_NM, 32) " out "(1,0)<1> " before in "(0,32)<1;1,0>" after "\n"         \
  operation " (M1_NM, 32) " out "(2,0)<1> " before in "(1,0)<1;1,0>" after "\n"          \
  operation " (M1_NM, 32) " out "(3,0)<1> " before in "(1,32)<1;1,0>" after "\n"
// bfn.x6A: s0 ^ (s1 & s2)
#define JITMOE_NIBBLE(out, in, mask, base) JITMOE_EACH_BYTE("bfn.x6A", out, base ":uw ", in, " " mask ":uw")
#define JITMOE_EACH_PLUS(out, in)                                       \
  "add (M1_NM, 32) " out "(0,0)<1> " out "(0,0)<1;1,0> " in "(0,0)<1;1,0>\n" \
  "add (M1_NM, 32) " out "(1,0)<1> " out "(1,0)<1;1,0> " in "(1,0)<1;1,0>\n" \
  "add (M1_NM, 32) " out "(2,0)<1> " out "(2,0)<1;1,0> " in "(2,0)<1;1,0>\n" \
  "add (M1_NM, 32) " out "(3,0)<1> " out "(3,0)<1;1,0> " in "(3,0)<1;1,0>\n"
// uint4 minus zero points; `first`: byte of the zero points' register where the first row's is.
#define JITMOE_ZERO_POINT(first)                                                                                  \
  "{\n" JITMOE_BYTES_IN("2") JITMOE_WORDS_OUT("EVEN", "0") JITMOE_WORDS_OUT("ODD", "1")                           \
  ".decl MINUS_UW v_type=G type=UW num_elts=8 alias=<%3," first ">\n"                                             \
  ".decl ROWS_UW v_type=G type=UW num_elts=128 align=GRF\n"                                                       \
  ".decl ROWS_HF v_type=G type=HF num_elts=128 alias=<ROWS_UW,0>\n"                                               \
  "mov (M1_NM, 32) ROWS_UW(0,0)<1> MINUS_UW(0,0)<1;16,0>\n"                                                       \
  "mov (M1_NM, 32) ROWS_UW(1,0)<1> MINUS_UW(0,2)<1;16,0>\n"                                                       \
  "mov (M1_NM, 32) ROWS_UW(2,0)<1> MINUS_UW(0,4)<1;16,0>\n"                                                       \
  "mov (M1_NM, 32) ROWS_UW(3,0)<1> MINUS_UW(0,6)<1;16,0>\n"                                                       \
  JITMOE_EACH_BYTE("shl", "EVEN_UW", "", "IN_UB", " 0x4:uw") JITMOE_NIBBLE("ODD_UW", "IN_UB", "0xF0", "0x5400")   \
  JITMOE_EACH("bfn.x6A", "EVEN_UW", "0x5400:uw ", "EVEN_UW", " 0xF0:uw")                                          \
  JITMOE_EACH_PLUS("ODD_HF", "ROWS_HF") JITMOE_EACH_PLUS("EVEN_HF", "ROWS_HF") "}\n"
#endif

// 8-bit codes: the A operand of 8 rows x 16 k.
template <bool emulated, Encoding encoding> inline i16x8 decode_bytes(u8x8 bytes) {
  static_assert(!is_4_bit(encoding));
  i16x8 out = {};
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (emulated) {
    for (int32 m = 0; m < 8; ++m) out[m] = int16(decode<encoding>(bytes[m], false));
  } else if constexpr (encoding == Encoding::e5m2) {
    asm("{\n" JITMOE_BYTES_IN("1") JITMOE_WORDS_OUT("OUT", "0")
        JITMOE_EACH_BYTE("shl", "OUT_UW", "", "IN_UB", " 0x8:uw") "}\n" : "=rw"(out) : "rw"(bytes));
  } else if constexpr (encoding == Encoding::e4m3) {
    asm("{\n" JITMOE_BYTES_IN("1") JITMOE_WORDS_OUT("OUT", "0")
        JITMOE_EACH_BYTE("shl", "OUT_W", "", "IN_B", " 0x7:w")
        JITMOE_EACH("and", "OUT_UW", "", "OUT_UW", " 0xBFFF:uw")
        JITMOE_EACH("mul", "OUT_HF", "", "OUT_HF", " 0x5C00:hf") "}\n" : "=rw"(out) : "rw"(bytes));
  } else {
    asm("{\n" JITMOE_BYTES_IN("1") JITMOE_WORDS_OUT("OUT", "0")
        JITMOE_EACH_BYTE("xor", "OUT_UW", "", "IN_UB", " 0x6480:uw")
        JITMOE_EACH("add", "OUT_HF", "", "OUT_HF", " 0xE480:hf") "}\n" : "=rw"(out) : "rw"(bytes));
  }
#endif
  return out;
}

struct NibbleOperands {
  i16x8 even, odd;  // A operands of 8 rows x 16 even and 16 odd k
};

// 4-bit codes, two A operands. zero_point, read if has_zero_point: lane t holds that of row t; upper: of row t - 8.
template <bool emulated, Encoding encoding, bool has_zero_point, bool upper>
inline NibbleOperands decode_nibbles(u8x8 bytes, [[maybe_unused]] uint8 zero_point) {
  static_assert(is_4_bit(encoding) && (!has_zero_point || encoding == Encoding::uint4));
  NibbleOperands out = {};
#ifdef __SYCL_DEVICE_ONLY__
  if constexpr (emulated) {
    for (int32 m = 0; m < 8; ++m) {
      const int32 zero = has_zero_point ? shuffle(int32(zero_point), m + (upper ? 8 : 0)) : 8;
      out.even[m] = int16(decode<encoding>(bytes[m], false, zero));
      out.odd[m] = int16(decode<encoding>(bytes[m], true, zero));
    }
  } else if constexpr (encoding == Encoding::e2m1) {
    asm("{\n" JITMOE_BYTES_IN("2") JITMOE_WORDS_OUT("EVEN", "0") JITMOE_WORDS_OUT("ODD", "1")
        JITMOE_EACH_BYTE("shl", "EVEN_W", "", "IN_B", " 0xC:w")
        JITMOE_EACH_BYTE("shl", "ODD_W", "", "IN_B", " 0x5:w")
        JITMOE_EACH("asr", "EVEN_W", "", "EVEN_W", " 0x3:w")
        JITMOE_EACH("and", "ODD_UW", "", "ODD_UW", " 0x8E00:uw")
        JITMOE_EACH("and", "EVEN_UW", "", "EVEN_UW", " 0x8E00:uw")
        JITMOE_EACH("mul", "ODD_HF", "", "ODD_HF", " 0x7400:hf")
        JITMOE_EACH("mul", "EVEN_HF", "", "EVEN_HF", " 0x7400:hf") "}\n"
        : "=rw"(out.even), "=rw"(out.odd) : "rw"(bytes));
  } else if constexpr (has_zero_point) {
    // -(64 + zero point): the zero point is a small integer, so its bits make the number as a nibble's do.
    const uint16 minus = uint16(0xD400u + (uint32(zero_point) << 4));
    if constexpr (upper)
      asm(JITMOE_ZERO_POINT("16") : "=rw"(out.even), "=rw"(out.odd) : "rw"(bytes), "rw"(minus));
    else
      asm(JITMOE_ZERO_POINT("0") : "=rw"(out.even), "=rw"(out.odd) : "rw"(bytes), "rw"(minus));
  } else if constexpr (encoding == Encoding::int4) {
    asm("{\n" JITMOE_BYTES_IN("2") JITMOE_WORDS_OUT("EVEN", "0") JITMOE_WORDS_OUT("ODD", "1")
        JITMOE_NIBBLE("EVEN_UW", "IN_UB", "0xF", "0x6408") JITMOE_NIBBLE("ODD_UW", "IN_UB", "0xF0", "0x5480")
        JITMOE_EACH("add", "EVEN_HF", "", "EVEN_HF", " 0xE408:hf")
        JITMOE_EACH("add", "ODD_HF", "", "ODD_HF", " 0xD480:hf") "}\n"
        : "=rw"(out.even), "=rw"(out.odd) : "rw"(bytes));
  } else {
    asm("{\n" JITMOE_BYTES_IN("2") JITMOE_WORDS_OUT("EVEN", "0") JITMOE_WORDS_OUT("ODD", "1")
        JITMOE_NIBBLE("EVEN_UW", "IN_UB", "0xF", "0x6400") JITMOE_NIBBLE("ODD_UW", "IN_UB", "0xF0", "0x5400")
        JITMOE_EACH("add", "EVEN_HF", "", "EVEN_HF", " 0xE408:hf")
        JITMOE_EACH("add", "ODD_HF", "", "ODD_HF", " 0xD480:hf") "}\n"
        : "=rw"(out.even), "=rw"(out.odd) : "rw"(bytes));
  }
#endif
  return out;
}

#ifdef __SYCL_DEVICE_ONLY__
#undef JITMOE_BYTES_IN
#undef JITMOE_WORDS_OUT
#undef JITMOE_EACH
#undef JITMOE_EACH_BYTE
#undef JITMOE_NIBBLE
#undef JITMOE_EACH_PLUS
#undef JITMOE_ZERO_POINT
#endif

}  // namespace jitmoe::arch

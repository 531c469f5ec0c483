// SPDX-License-Identifier: MIT
// Vectors of one CPU instruction set, and the two multiply-adds that the CPU kernels are made of.
//
// A "unit" is what one vector lane holds of an operand: a pair of bf16 (k, k+1) in one dword where the CPU has
// vdpbf16ps, four int8 where it has vpdpbusd, one float otherwise. `Simd<isa, dtype>` says which; everything above works
// on units. Pairs of fp16 are for tiles alone (amx.hpp): vectors move them but do not multiply them.
//
//   lanes        floats per register: 16 (AVX-512), 8 (AVX2), 4 (any x86-64)
//   k_per_unit   elements of K in one unit: 4, 2 or 1
//
// vpdpbusd multiplies unsigned by signed bytes. So 128 is added to one side's int8, and sums begin at -128 times the sum
// of the other side's: rows form adds to weights (codes.hpp), lanes form to tokens, both to what they load less often.
//
// Unaligned loads go through memcpy, so tensors need only their element's alignment. SPIR-V vectors have at most 16
// elements, which is why a register of 32 bf16 is written as 16 dwords.
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe::cpu {

template <class T, int lanes> using Vec = T __attribute__((ext_vector_type(lanes)));

template <class V> inline V load(const void* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}
template <class V> inline void store(void* to, V value) { __builtin_memcpy(to, &value, sizeof(V)); }

// Starts moving the cache line at `address`, which may lie outside of any tensor, to the L2 cache. Not to L1: weight
// rows are often a multiple of 4 KiB apart, so few of them fit there at once.
inline void prefetch(const void* address) {
#ifdef __SYCL_DEVICE_ONLY__
  asm volatile("prefetcht1 (%0)" : : "r"(address));
#else
  (void)address;
#endif
}

// Leaves the core to its other thread for a moment, in a loop that waits.
inline void pause() {
#ifdef __SYCL_DEVICE_ONLY__
  asm volatile("pause" : : : "memory");
#endif
}

constexpr int simd_lanes(CpuIsa isa) { return isa == CpuIsa::generic ? 4 : isa == CpuIsa::avx2 ? 8 : 16; }
constexpr bool has_tiles(CpuIsa isa) { return isa == CpuIsa::amx_bf16 || isa == CpuIsa::amx_fp16; }
constexpr bool has_bf16_dot(CpuIsa isa) { return isa == CpuIsa::avx512_bf16 || has_tiles(isa); }

// avx512_bf16 stands for avx512_vnni and gfni too (runtime/cpu.py).
constexpr bool has_int8_dot(CpuIsa isa) { return has_bf16_dot(isa); }

// bf16 or fp16 as floats.
template <DType dtype, int lanes> inline Vec<float, lanes> half_floats(Vec<uint16, lanes> bits) {
  static_assert(dtype == DType::bf16 || dtype == DType::fp16, "16 bits");
  if constexpr (dtype == DType::bf16) return bit_cast<Vec<float, lanes>>(__builtin_convertvector(bits, Vec<uint32, lanes>) << 16);
  else return __builtin_convertvector(bit_cast<Vec<_Float16, lanes>>(bits), Vec<float, lanes>);
}

// lanes floats from lanes stored elements.
template <DType dtype, int lanes> inline Vec<float, lanes> load_floats(const element_t<dtype>* from) {
  if constexpr (dtype == DType::fp32) return load<Vec<float, lanes>>(from);
  else return half_floats<dtype, lanes>(load<Vec<uint16, lanes>>(from));
}

// The first `count` bytes at `at`, zero for the rest of 64; what lies past them is not touched.
inline Vec<uint32, 16> load_first(const uint8* at, int64 count) {
  Vec<uint32, 16> value(0u);
#ifdef __SYCL_DEVICE_ONLY__
  const uint64 mask = count >= 64 ? ~uint64(0) : count <= 0 ? 0 : (uint64(1) << count) - 1;
  asm("kmovq %2, %%k1\n\tvmovdqu8 (%1), %0%{%%k1%}%{z%}" : "=v"(value) : "r"(at), "r"(mask) : "k1", "memory");
#else
  (void)at, (void)count;
#endif
  return value;
}

// Bits of lanes bf16, rounded to nearest even; NaN stays NaN.
template <int lanes> inline Vec<uint32, lanes> bf16_bits(Vec<float, lanes> value) {
  const auto bits = bit_cast<Vec<uint32, lanes>>(value);
  const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const auto quiet = (bits >> 16) | 0x40u;
  return (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
}

// Bits of lanes bf16 or fp16, rounded likewise.
template <DType dtype, int lanes> inline Vec<uint32, lanes> half_bits(Vec<float, lanes> value) {
  static_assert(dtype == DType::bf16 || dtype == DType::fp16, "16 bits");
  if constexpr (dtype == DType::bf16) return bf16_bits<lanes>(value);
  else
    return __builtin_convertvector(bit_cast<Vec<uint16, lanes>>(__builtin_convertvector(value, Vec<_Float16, lanes>)),
                                   Vec<uint32, lanes>);
}

template <DType dtype, int lanes> inline void store_floats(element_t<dtype>* to, Vec<float, lanes> value) {
  if constexpr (dtype == DType::fp32) {
    store(to, value);
  } else if constexpr (dtype == DType::bf16) {
    store(to, __builtin_convertvector(bf16_bits<lanes>(value), Vec<uint16, lanes>));
  } else {
    store(to, __builtin_convertvector(value, Vec<_Float16, lanes>));
  }
}

// value rounded to dtype and back.
template <DType dtype, int lanes> inline Vec<float, lanes> round_to(Vec<float, lanes> value) {
  if constexpr (dtype == DType::fp32) {
    return value;
  } else if constexpr (dtype == DType::bf16) {
    return bit_cast<Vec<float, lanes>>(bf16_bits<lanes>(value) << 16);
  } else {
    return __builtin_convertvector(__builtin_convertvector(value, Vec<_Float16, lanes>), Vec<float, lanes>);
  }
}

// a * b + acc, fused where the instruction set has it (a libm call otherwise, so not there).
template <CpuIsa isa, int lanes>
inline Vec<float, lanes> multiply_add(Vec<float, lanes> a, Vec<float, lanes> b, Vec<float, lanes> acc) {
  if constexpr (isa == CpuIsa::generic) return a * b + acc;
  else return __builtin_elementwise_fma(a, b, acc);
}

// acc[l] += a[l].k * b[l].k + a[l].k+1 * b[l].k+1 for 16 pairs of bf16 (VDPBF16PS; products and sums in fp32).
inline void dot_bf16(Vec<float, 16>& acc, Vec<uint32, 16> a, Vec<uint32, 16> b) {
#ifdef __SYCL_DEVICE_ONLY__
  // The tie is written as "0": a "+v" reaches the driver as four unrelated operands, and then it is luck whether the
  // register allocator gives acc the same register twice.
  asm("vdpbf16ps %3, %2, %0" : "=v"(acc) : "0"(acc), "v"(a), "v"(b));
#else
  (void)acc, (void)a, (void)b;
#endif
}

// acc[l] += sum over i < 4 of a[l].byte i (signed) * b[l].byte i (unsigned) for 16 dwords (VPDPBUSD), exact.
inline void dot_int8(Vec<int32, 16>& acc, Vec<uint32, 16> a, Vec<uint32, 16> b) {
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpdpbusd %2, %3, %0" : "=v"(acc) : "0"(acc), "v"(a), "v"(b));
#else
  (void)acc, (void)a, (void)b;
#endif
}

// to[i] = from[i] for i < count, zero for the rest of num. Not inlined: tails are rare, and unrolled copies of this in
// every load would triple the time that the driver takes to build a kernel.
template <class T> [[gnu::noinline]] void copy_tail(const T* from, int64 count, T* to, int num) {
#pragma clang loop unroll(disable) vectorize(disable)
  for (int i = 0; i < num; ++i) to[i] = i < count ? from[i] : T(0);
}

// How elements of `dtype` are multiplied on `isa`.
template <CpuIsa isa_, DType dtype_> struct Simd {
  static constexpr CpuIsa isa = isa_;
  static constexpr DType dtype = dtype_;
  static constexpr int lanes = simd_lanes(isa);
  static constexpr bool pairs =
      dtype == DType::bf16 ? has_bf16_dot(isa) : dtype == DType::fp16 && isa == CpuIsa::amx_fp16;
  static constexpr bool quads = dtype == DType::int8;
  static_assert(!quads || has_int8_dot(isa), "int8 elements need vpdpbusd");
  static constexpr int k_per_unit = quads ? 4 : pairs ? 2 : 1;
  static constexpr int step = lanes * k_per_unit;  // elements of K in one vector
  // Whether a unit is stored in memory as it is used, so that weights need no conversion.
  static constexpr bool direct = pairs || dtype == DType::fp32;

  using element = element_t<dtype>;
  using unit = uint32;  // bits of a bf16 pair, or of a float
  using floats = Vec<float, lanes>;
  using units = Vec<uint32, lanes>;
  using sums = Vec<typename Conditional<quads, int32, float>::type, lanes>;

  // a: tokens, b: weights.
  static void accumulate(sums& acc, units a, units b) {
    static_assert(!pairs || dtype == DType::bf16, "no vector instruction multiplies pairs of fp16");
    if constexpr (quads) dot_int8(acc, a, b);
    else if constexpr (pairs) dot_bf16(acc, a, b);
    else acc = multiply_add<isa, lanes>(bit_cast<floats>(a), bit_cast<floats>(b), acc);
  }

  // lanes units from lanes * k_per_unit elements.
  static units load_whole(const element* from) {
    if constexpr (pairs || quads) return load<units>(from);
    else return bit_cast<units>(load_floats<dtype, lanes>(from));
  }

  // Units u .. u+lanes-1 of a row with K dense elements; what lies past the end is zero.
  static units load_units(const element* row, int64 u, int64 k) {
    const int64 first = u * k_per_unit;
    element tail[lanes * k_per_unit];
    const element* from = row + first;
    if (first + lanes * k_per_unit > k) {
      copy_tail(from, k - first, tail, lanes * k_per_unit);
      from = tail;
    }
    return load_whole(from);
  }

  static floats to_floats(sums value) {
    if constexpr (quads) return __builtin_convertvector(value, floats);
    else return value;
  }

  // The unit u of such a row.
  static unit load_unit(const element* row, int64 u, int64 k) {
    if constexpr (pairs) {
      if (2 * u + 1 < k) return load<unit>(row + 2 * u);
      return row[2 * u];
    } else {
      (void)k;
      return bit_cast<unit>(to_float<dtype>(row[u]));
    }
  }
};

template <class T, T... numbers> struct Sequence {};

// Exchanges the off-diagonal blocks of two rows that are `step` apart: one round of a transposition.
template <int step, class V, int... l> inline void exchange(V& a, V& b, Sequence<int, l...>) {
  constexpr int lanes = sizeof...(l);
  const V low = __builtin_shufflevector(a, b, (l & step ? lanes + l - step : l)...);
  const V high = __builtin_shufflevector(a, b, (l & step ? lanes + l : l + step)...);
  a = low;
  b = high;
}

// Lane i of the result is the sum of the lanes i, i + count, i + 2 count ...
template <int lanes, int count> inline Vec<float, count> fold(Vec<float, lanes> v) {
  if constexpr (lanes == count) return v;
  else return fold<lanes / 2, count>(v.lo + v.hi);
}

template <int lanes, int step> inline void transpose_step(Vec<uint32, lanes> (&m)[lanes]) {
  if constexpr (step < lanes) {
#pragma unroll
    for (int i = 0; i < lanes; ++i)
      if (!(i & step)) exchange<step>(m[i], m[i + step], __make_integer_seq<Sequence, int, lanes>{});
    transpose_step<lanes, 2 * step>(m);
  }
}

// Lane i of the result (i < count, a power of two <= lanes) is the sum of all lanes of v[i], in a fixed tree order.
template <int lanes, int count, int step = 1>
inline Vec<float, count> sum_lanes(Vec<float, lanes> (&v)[count]) {
  if constexpr (step < count) {
#pragma unroll
    for (int i = 0; i < count; i += 2 * step) {
      exchange<step>(v[i], v[i + step], __make_integer_seq<Sequence, int, lanes>{});
      v[i] += v[i + step];
    }
    return sum_lanes<lanes, count, 2 * step>(v);
  } else {
    return fold<lanes, count>(v[0]);
  }
}

// m[i][l] <-> m[l][i]: log2(lanes) rounds of exchanging blocks between rows that are `step` apart.
template <int lanes> inline void transpose(Vec<uint32, lanes> (&m)[lanes]) { transpose_step<lanes, 1>(m); }

}  // namespace jitmoe::cpu

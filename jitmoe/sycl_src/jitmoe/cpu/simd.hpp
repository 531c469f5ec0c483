// SPDX-License-Identifier: MIT
// Vectors of one CPU instruction set, and the two multiply-adds that the CPU kernels are made of.
//
// A "unit" is what one vector lane holds of an operand: a pair of bf16 (k, k+1) in one dword where the CPU has
// vdpbf16ps, one float otherwise. `Simd<isa, dtype>` says which; everything above works on units.
//
//   lanes        floats per register: 16 (AVX-512), 8 (AVX2), 4 (any x86-64)
//   k_per_unit   elements of K in one unit: 2 or 1
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

constexpr int simd_lanes(CpuIsa isa) { return isa == CpuIsa::generic ? 4 : isa == CpuIsa::avx2 ? 8 : 16; }
constexpr bool has_bf16_dot(CpuIsa isa) { return isa == CpuIsa::avx512_bf16 || isa == CpuIsa::amx_bf16; }

// lanes floats from lanes stored elements.
template <DType dtype, int lanes> inline Vec<float, lanes> load_floats(const element_t<dtype>* from) {
  if constexpr (dtype == DType::fp32) {
    return load<Vec<float, lanes>>(from);
  } else if constexpr (dtype == DType::bf16) {
    const auto bits = __builtin_convertvector(load<Vec<uint16, lanes>>(from), Vec<uint32, lanes>);
    return bit_cast<Vec<float, lanes>>(bits << 16);
  } else {
    return __builtin_convertvector(load<Vec<_Float16, lanes>>(from), Vec<float, lanes>);
  }
}

// Bits of lanes bf16, rounded to nearest even; NaN stays NaN.
template <int lanes> inline Vec<uint32, lanes> bf16_bits(Vec<float, lanes> value) {
  const auto bits = bit_cast<Vec<uint32, lanes>>(value);
  const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const auto quiet = (bits >> 16) | 0x40u;
  return (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
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
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
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

// Asks for the cache line at `address` to be brought into the L2 cache; any address is allowed.
inline void prefetch(const void* address) {
#ifdef __SYCL_DEVICE_ONLY__
  asm volatile("prefetcht1 (%0)" : : "r"(address));
#else
  (void)address;
#endif
}

// How elements of `dtype` are multiplied on `isa`.
template <CpuIsa isa_, DType dtype_> struct Simd {
  static constexpr CpuIsa isa = isa_;
  static constexpr DType dtype = dtype_;
  static constexpr int lanes = simd_lanes(isa);
  static constexpr bool pairs = dtype == DType::bf16 && has_bf16_dot(isa);
  static constexpr int k_per_unit = pairs ? 2 : 1;
  // Whether a unit is stored in memory as it is used, so that weights need no conversion.
  static constexpr bool direct = pairs || dtype == DType::fp32;

  using element = element_t<dtype>;
  using unit = uint32;  // bits of a bf16 pair, or of a float
  using floats = Vec<float, lanes>;
  using units = Vec<uint32, lanes>;

  static void accumulate(floats& acc, units a, units b) {
    if constexpr (pairs) dot_bf16(acc, a, b);
    else acc = multiply_add<isa, lanes>(bit_cast<floats>(a), bit_cast<floats>(b), acc);
  }

  // lanes units from lanes * k_per_unit elements.
  static units load_whole(const element* from) {
    if constexpr (pairs) return load<units>(from);
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

// Sum of all lanes, in a fixed tree order.
template <int lanes> inline float sum(Vec<float, lanes> v) {
  if constexpr (lanes == 16) {
    return sum<8>(v.lo + v.hi);
  } else if constexpr (lanes == 8) {
    return sum<4>(v.lo + v.hi);
  } else {
    const Vec<float, 2> two = v.lo + v.hi;
    return two.x + two.y;
  }
}

template <class T, T... numbers> struct Sequence {};

// Which lane of the pair (a, b) goes to lane l of a result; b's lanes count from `lanes` on. Each is one instruction.
// kLow32 .. kHigh64 interleave within 128-bit parts (UNPCK), the others move whole 128-bit parts (VSHUFF32X4,
// VPERM2F128).
enum class Shuffle { kLow32, kHigh32, kLow64, kHigh64, kLowHalf, kHighHalf, kEvenParts, kOddParts };
constexpr int shuffled_lane(Shuffle kind, int lanes, int l) {
  const int part = l & ~3, in_part = l & 3, half = lanes / 2;
  switch (kind) {
    case Shuffle::kLow32: return part + in_part / 2 + (in_part & 1 ? lanes : 0);
    case Shuffle::kHigh32: return part + 2 + in_part / 2 + (in_part & 1 ? lanes : 0);
    case Shuffle::kLow64: return part + (in_part & 1) + (in_part & 2 ? lanes : 0);
    case Shuffle::kHigh64: return part + 2 + (in_part & 1) + (in_part & 2 ? lanes : 0);
    case Shuffle::kLowHalf: return l < half ? l : lanes + l - half;
    case Shuffle::kHighHalf: return l < half ? half + l : lanes + l;
    case Shuffle::kEvenParts: return l < half ? 2 * part + in_part : lanes + 2 * (part - half) + in_part;
    default: return l < half ? 2 * part + 4 + in_part : lanes + 2 * (part - half) + 4 + in_part;
  }
}

template <Shuffle kind, class V, int... l> inline V shuffle(V a, V b, Sequence<int, l...>) {
  return __builtin_shufflevector(a, b, shuffled_lane(kind, sizeof...(l), l)...);
}
template <Shuffle kind, int lanes> inline Vec<uint32, lanes> shuffle(Vec<uint32, lanes> a, Vec<uint32, lanes> b) {
  return shuffle<kind>(a, b, __make_integer_seq<Sequence, int, lanes>{});
}

// m[i][l] <-> m[l][i]: 4x4 transpositions within 128-bit parts, then of the parts themselves.
template <int lanes> inline void transpose(Vec<uint32, lanes> (&m)[lanes]) {
#pragma unroll
  for (int i = 0; i < lanes; i += 4) {
    const auto low01 = shuffle<Shuffle::kLow32, lanes>(m[i], m[i + 1]);
    const auto high01 = shuffle<Shuffle::kHigh32, lanes>(m[i], m[i + 1]);
    const auto low23 = shuffle<Shuffle::kLow32, lanes>(m[i + 2], m[i + 3]);
    const auto high23 = shuffle<Shuffle::kHigh32, lanes>(m[i + 2], m[i + 3]);
    m[i] = shuffle<Shuffle::kLow64, lanes>(low01, low23);
    m[i + 1] = shuffle<Shuffle::kHigh64, lanes>(low01, low23);
    m[i + 2] = shuffle<Shuffle::kLow64, lanes>(high01, high23);
    m[i + 3] = shuffle<Shuffle::kHigh64, lanes>(high01, high23);
  }
  if constexpr (lanes == 8) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto low = shuffle<Shuffle::kLowHalf, lanes>(m[i], m[i + 4]);
      m[i + 4] = shuffle<Shuffle::kHighHalf, lanes>(m[i], m[i + 4]);
      m[i] = low;
    }
  }
  if constexpr (lanes == 16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto low04 = shuffle<Shuffle::kLowHalf, lanes>(m[i], m[i + 4]);
      const auto high04 = shuffle<Shuffle::kHighHalf, lanes>(m[i], m[i + 4]);
      const auto low8c = shuffle<Shuffle::kLowHalf, lanes>(m[i + 8], m[i + 12]);
      const auto high8c = shuffle<Shuffle::kHighHalf, lanes>(m[i + 8], m[i + 12]);
      m[i] = shuffle<Shuffle::kEvenParts, lanes>(low04, low8c);
      m[i + 4] = shuffle<Shuffle::kOddParts, lanes>(low04, low8c);
      m[i + 8] = shuffle<Shuffle::kEvenParts, lanes>(high04, high8c);
      m[i + 12] = shuffle<Shuffle::kOddParts, lanes>(high04, high8c);
    }
  }
}

}  // namespace jitmoe::cpu

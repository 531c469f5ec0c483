// SPDX-License-Identifier: MIT
// chunk rows form: rows form (tiles.hpp) for codes that are faster to convert 128 at a time, with inputs prepared to suit
// them. A chunk is four vectors of units, whose order within it is the inputs' too:
//
//   8-bit integers   units in the order of K
//   4-bit codes      lane l of vector j holds elements 8 l + j and 8 l + j + 4, which is what shifting the codes right by
//                    4 j leaves in the low bits of both words
//   FP8              as VPUNPCK interleaves 64 low and high bytes of bf16
//
// Integer codes meet inputs that are 16-bit fixed-point numbers: VPDPWSSD multiplies and adds 32 products in a cycle or
// less, VDPBF16PS takes twice as long or longer. Inputs of a chunk are integers times the power of two that brings the
// largest to 15 bits, so bf16 inputs of at least 1/128 of it are exact, and no input is off by more than 2^-15 of it
// (inputs below 2^-112 are zero). Sums of a chunk are exact, are multiplied by both scales and added up in fp32. E2M1 holds
// multiples of 1/2: twice its values are integers.
//
// FP8 becomes bf16 byte by byte, each bit of which is a bit of the code or the inverse of one. What has no exponent of its own
// has no such form: 128 codes with a subnormal, an infinity or a NaN go the way of codes.hpp.
//
// Blocks of scales that are parts of a chunk (32 or 64 k) are whole vectors (8-bit integers), lanes (4 bits), or both (FP8:
// 64 k are two vectors, whose halves hold 32 k each).
//
// Letters: t token, n weight row, k element of K, c chunk.
#pragma once

#include <jitmoe/cpu/tiles.hpp>

namespace jitmoe::cpu {

constexpr int kChunkK = 128;      // plan/cpu.py names the same number
constexpr int kChunkVectors = 4;  // of 16 units
constexpr int kPreparedK = 4096;  // elements of K between two visits of the result
constexpr int kChunkTokens = 4;   // of one pass

// Inputs of one pass; `units` is memory that other forms use as well.
struct ChunkInputs {
  uint32 (*units)[kPreparedK / 2];        // [kChunkTokens]
  float (*scales)[kPreparedK / kChunkK];  // [kChunkTokens], per chunk
};

// acc[l] += sum of the products of both words of a[l] and b[l], signed (VPDPWSSD), exact.
inline void dot_int16(Vec<int32, 16>& acc, Vec<uint32, 16> a, Vec<uint32, 16> b) {
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpdpwssd %3, %2, %0" : "=v"(acc) : "0"(acc), "v"(a), "v"(b));
#else
  (void)acc, (void)a, (void)b;
#endif
}

// Deals the lanes of a and b, in this order, to two vectors in turn.
inline void deal(Vec<uint32, 16> a, Vec<uint32, 16> b, Vec<uint32, 16>& even, Vec<uint32, 16>& odd) {
  even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

inline uint32 max_lane(Vec<uint32, 16> v) {
  const auto eight = __builtin_elementwise_max(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                                               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  const auto four = __builtin_elementwise_max(__builtin_shufflevector(eight, eight, 0, 1, 2, 3),
                                              __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
  const auto two = __builtin_elementwise_max(__builtin_shufflevector(four, four, 0, 1), __builtin_shufflevector(four, four, 2, 3));
  return two[0] > two[1] ? two[0] : two[1];
}

// Writes elements [k0, k0 + num_k) of a row of K elements, which have at most 11 significant bits, as chunks of fixed-point
// units; zero past K.
template <DType dtype, class W>
[[gnu::noinline]] void to_fixed(const element_t<dtype>* row, int64 k0, int64 num_k, int64 k, uint32* units, float* scales) {
  using F = Vec<float, 16>;
  using U = Vec<uint32, 16>;
  constexpr int vectors = kChunkK / 16;
#pragma clang loop unroll(disable)
  for (int64 c = 0; c * kChunkK < num_k; ++c) {
    const int64 first = k0 + c * kChunkK;
    const element_t<dtype>* from = row + first;
    element_t<dtype> tail[kChunkK];
    if (first + kChunkK > k) {
      copy_tail(from, k - first, tail, kChunkK);
      from = tail;
    }
    F values[vectors];
    U most = U(0u);  // of the magnitudes' bits, of which NaN has the most
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
      values[i] = load_floats<dtype, 16>(from + 16 * i);
      most = __builtin_elementwise_max(most, bit_cast<U>(values[i]) & 0x7fffffffu);
    }
    const uint32 exponent = max_lane(most) >> 23;
    const bool is_finite = exponent < 255, is_zero = exponent <= 14;
    scales[c] = is_zero ? 0.0f : is_finite ? bit_cast<float>((exponent - 14) << 23) * W::unit : __builtin_nanf("");
    const float inverse = is_zero || !is_finite ? 0.0f : bit_cast<float>((268 - exponent) << 23);
    constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    Vec<uint32, 16> pairs[kChunkVectors];
#pragma unroll
    for (int j = 0; j < kChunkVectors; ++j) {
      U words[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        words[i] = bit_cast<U>((is_finite ? values[2 * j + i] : F(0.0f)) * inverse + kRoundMagic) & 0xffffu;
      U even, odd;
      deal(words[0], words[1], even, odd);
      pairs[j] = even | (odd << 16);
    }
    if constexpr (W::bits == 4) {  // elements 8 l + 2 i and 8 l + 2 i + 1 are in pair 4 l + i
      U fours[4];  // [i], lane l
      U low[2], high[2];
      deal(pairs[0], pairs[1], low[0], high[0]);
      deal(pairs[2], pairs[3], low[1], high[1]);
      deal(low[0], low[1], fours[0], fours[2]);
      deal(high[0], high[1], fours[1], fours[3]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        pairs[2 * i] = (fours[i] & 0xffffu) | (fours[i + 2] << 16);
        pairs[2 * i + 1] = (fours[i] >> 16) | (fours[i + 2] & 0xffff0000u);
      }
    }
#pragma unroll
    for (int j = 0; j < kChunkVectors; ++j) store(units + (c * kChunkVectors + j) * 16, pairs[j]);
  }
}

// Codes as pairs of 16-bit integers, a chunk at a time.
template <Encoding encoding, bool has_zero_point> struct IntegerChunks {
  using S = Simd<CpuIsa::avx512_bf16, DType::bf16>;  // 16 lanes, pairs
  using units = S::units;
  using sums = Vec<int32, 16>;
  static constexpr int bits = code_bits(encoding);
  static constexpr int chunk_bytes = kChunkK * bits / 8;
  static constexpr int vectors_apart = encoding == Encoding::int8 ? 4 : 1;  // groups of vectors that hold different k
  static constexpr float unit = encoding == Encoding::e2m1 ? 0.5f : 1.0f;  // what a 1 stands for

  // What `load` adds to codes: the index of their values, modulo 32.
  static units zero(units points) { return (32u - points) * 0x10001u; }
  static void dot(sums& acc, units x, units w) { dot_int16(acc, x, w); }
  template <DType dtype>
  static void prepare(const element_t<dtype>* row, int64 k0, int64 num_k, int64 k, uint32* to, float* scales) {
    to_fixed<dtype, IntegerChunks>(row, k0, num_k, k, to, scales);
  }

  static void load(const uint8* at, units zero, units (&chunk)[kChunkVectors]) {
    if constexpr (encoding == Encoding::int8) {
      (void)zero;
#pragma unroll
      for (int j = 0; j < kChunkVectors; ++j) chunk[j] = sign_extended(at + 32 * j);
    } else {
      const auto codes = cpu::load<units>(at);
#pragma unroll
      for (int j = 0; j < kChunkVectors; ++j) {
        const units index = codes >> (4 * j);
        chunk[j] = has_zero_point ? look_up((index & 0x000f000fu) + zero, table()) : look_up(index, table());
      }
    }
  }

 private:
  // 32 words; without a zero point 16 twice, so that bit 4 of an index may be anything.
  static units table() {
    if constexpr (has_zero_point)  // 0..15, -16..-1
      return {0x00010000, 0x00030002, 0x00050004, 0x00070006, 0x00090008, 0x000b000a, 0x000d000c, 0x000f000e,
              0xfff1fff0, 0xfff3fff2, 0xfff5fff4, 0xfff7fff6, 0xfff9fff8, 0xfffbfffa, 0xfffdfffc, 0xfffffffe};
    else if constexpr (encoding == Encoding::int4)  // 0..7, -8..-1
      return {0x00010000, 0x00030002, 0x00050004, 0x00070006, 0xfff9fff8, 0xfffbfffa, 0xfffdfffc, 0xfffffffe,
              0x00010000, 0x00030002, 0x00050004, 0x00070006, 0xfff9fff8, 0xfffbfffa, 0xfffdfffc, 0xfffffffe};
    else if constexpr (encoding == Encoding::uint4)  // -8..7
      return {0xfff9fff8, 0xfffbfffa, 0xfffdfffc, 0xfffffffe, 0x00010000, 0x00030002, 0x00050004, 0x00070006,
              0xfff9fff8, 0xfffbfffa, 0xfffdfffc, 0xfffffffe, 0x00010000, 0x00030002, 0x00050004, 0x00070006};
    else  // twice 0 0.5 1 1.5 2 3 4 6 and their negatives
      return {0x00010000, 0x00030002, 0x00060004, 0x000c0008, 0xffff0000, 0xfffdfffe, 0xfffafffc, 0xfff4fff8,
              0x00010000, 0x00030002, 0x00060004, 0x000c0008, 0xffff0000, 0xfffdfffe, 0xfffafffc, 0xfff4fff8};
  }
};

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

// FP8 as pairs of bf16, a chunk at a time.
template <Encoding encoding> struct Fp8Chunks {
  using S = Simd<CpuIsa::avx512_bf16, DType::bf16>;
  using units = S::units;
  using sums = S::floats;
  static constexpr bool is_e4m3 = encoding == Encoding::e4m3;
  static constexpr int bits = 8;
  static constexpr int chunk_bytes = kChunkK;
  static constexpr int vectors_apart = 2;
  // Codes from the smallest with an exponent up to those of infinities and NaN, doubled.
  static constexpr uint32 first_ordinary = is_e4m3 ? 0x10 : 0x08, first_special = is_e4m3 ? 0xfe : 0xf8;

  static void dot(sums& acc, units x, units w) { dot_bf16(acc, x, w); }

  static void load(const uint8* at, units, units (&chunk)[kChunkVectors]) {
    const units codes[2] = {cpu::load<units>(at), cpu::load<units>(at + 64)};
    const bool is_ordinary = !any_outside(codes[0], codes[1], first_ordinary, first_special - first_ordinary);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      units* const to = chunk + 2 * half;
      if (is_ordinary) [[likely]] {
        const units low = affine_bits<0>(codes[half], low_bits), high = affine_bits<bias_bits>(codes[half], high_bits);
        to[0] = interleave_low(low, high);
        to[1] = interleave_high(low, high);
      } else {
        to[0] = fp8_pairs<encoding>(sign_words(interleave_low(codes[half], codes[half])));
        to[1] = fp8_pairs<encoding>(sign_words(interleave_high(codes[half], codes[half])));
      }
    }
  }

  template <DType dtype>
  static void prepare(const element_t<dtype>* row, int64 k0, int64 num_k, int64 k, uint32* to, float* scales) {
    static_assert(dtype == DType::bf16, "products of bf16");
#pragma clang loop unroll(disable)
    for (int64 at = 0; at < num_k; at += 64, to += 32) {
      scales[at / kChunkK] = 1.0f;
      const auto* from = reinterpret_cast<const uint8*>(row + k0 + at);
      const int64 left = 2 * (k - k0 - at);
      const units a = load_first(from, left), b = load_first(from + 64, left - 64);
      store(to, __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27));
      store(to + 16, __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31));
    }
    if (ceil_div(num_k, 64) % 2 != 0) store(to, units(0u)), store(to + 16, units(0u));
  }

 private:
  // Bytes of bf16 as sums of bits of the code (affine_bits). The exponent e of E4M3 plus the difference of the biases, 120,
  // has the bits e3, four times not e3, e2, e1, e0; that of E5M2, plus 112, has e4, three times not e4, e3 to e0.
  static constexpr uint64 high_bits = is_e4m3 ? 0x1020404040404080 : 0x0810204040404080;
  static constexpr int bias_bits = is_e4m3 ? 0x3c : 0x38;
  static constexpr uint64 low_bits = is_e4m3 ? 0x01020408 : 0x010204;

  // The upper byte of each word, sign-extended to the word.
  static units sign_words(units words) {
    using I = Vec<int32, 16>;
    const auto upper = bit_cast<units>(bit_cast<I>(words) >> 8) & 0xffff0000u;
    const auto lower = bit_cast<units>(bit_cast<I>(words << 16) >> 24) & 0xffffu;
    return upper | lower;
  }
};

// How rows of a format are multiplied in chunks.
template <Encoding encoding, bool has_zero_point> struct ChunksOf {
  using type = IntegerChunks<encoding, has_zero_point>;
};
template <bool has_zero_point> struct ChunksOf<Encoding::e4m3, has_zero_point> { using type = Fp8Chunks<Encoding::e4m3>; };
template <bool has_zero_point> struct ChunksOf<Encoding::e5m2, has_zero_point> { using type = Fp8Chunks<Encoding::e5m2>; };

// value[index[l]] in lane l.
template <class T> inline Vec<T, 16> pick(Vec<T, 16> value, Vec<uint32, 16> index) {
  auto result = bit_cast<Vec<uint32, 16>>(value);
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpermd %2, %1, %0" : "=v"(result) : "v"(index), "v"(value));
#else
  (void)index;
#endif
  return bit_cast<Vec<T, 16>>(result);
}

// l / (16 / count) in lane l: which of the `count` blocks beside each other in a vector it belongs to.
template <int count> inline Vec<uint32, 16> block_of_lane() {
  static_assert(count == 1 || count == 2 || count == 4, "blocks of 32, 64 or 128 k");
  if constexpr (count == 1) return Vec<uint32, 16>(0u);
  else if constexpr (count == 2) return {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  else return {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
}

// token[r][n] = sum over k in [k0, k0 + num_k) of x[r][k] * w[row n][k]; missing rows repeat the last one. The rows of w
// are those of `blocks` and K elements long.
template <class W, int R, int N, class B>
inline RowsResult<R, N> chunk_tile(const uint8* w, int64 w_stride, Streams<N> rows, const B& blocks,
                                   const uint32* const (&x)[R], const float* const (&scales)[R], int64 k0, int64 num_k,
                                   int64 k) {
  using floats = Vec<float, 16>;
  using units = typename W::units;
  constexpr bool parts = B::block_k != 0 && B::block_k < kChunkK;
  constexpr int per_chunk = parts ? kChunkK / (B::block_k == 0 ? 1 : B::block_k) : 1;  // blocks
  constexpr int apart = W::vectors_apart < per_chunk ? W::vectors_apart : per_chunk;  // groups of vectors
  constexpr int per_group = per_chunk / apart;                                        // blocks, beside each other in lanes
  constexpr int at_once = 16 / per_chunk;  // chunks whose scales are in one vector
  static_assert(B::block_k == 0 || kChunkK % B::block_k == 0 || B::block_k % kChunkK == 0, "chunks and blocks nest");
  const uint8* row[N];
  typename B::Row row_scales[N];
  const int64 row_bytes = ceil_div(k * W::bits, 8);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int64 at = rows.row_or_last(n);
    row[n] = w + w_stride * at + k0 * W::bits / 8;
    if constexpr (B::block_k != 0) row_scales[n] = {blocks, at};
  }
  int64 left = row_bytes - k0 * W::bits / 8;
  floats result[R * N];
#pragma unroll
  for (int i = 0; i < R * N; ++i) result[i] = floats(0.0f);
  Vec<float, 16> scale[N];
  units zero[N];
  const int64 num_chunks = ceil_div(num_k, kChunkK);
  for (int64 c0 = 0; c0 < num_chunks; c0 += at_once) {
    const int64 end = c0 + at_once < num_chunks ? c0 + at_once : num_chunks;
    int64 first_block = 0;
    if constexpr (B::block_k != 0) {
      const int64 last_k = (k0 + end * kChunkK < k ? k0 + end * kChunkK : k) - 1;
      first_block = (k0 + c0 * kChunkK) / B::block_k;
      const int count = int(last_k / B::block_k - first_block) + 1;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        scale[n] = row_scales[n].scales(first_block, count);
        if constexpr (B::has_zero_point) zero[n] = W::zero(row_scales[n].zeros(first_block, count));
      }
    }
#pragma clang loop unroll(disable)
    for (int64 c = c0; c < end; ++c) {
      auto block = block_of_lane<per_group>();
      if constexpr (parts) block += uint32(c - c0) * per_chunk;
      else if constexpr (B::block_k != 0) block += uint32((k0 + c * kChunkK) / B::block_k - first_block);
      prefetch_streams<W::chunk_bytes>(row, rows.ahead(row_bytes - left));
      uint8 tail[N][W::chunk_bytes];
      if (left < W::chunk_bytes)
        for (int n = 0; n < N; ++n) {
          for (int i = 0; i < W::chunk_bytes; i += 64) store(tail[n] + i, load_first(row[n] + i, left - i));
          row[n] = tail[n];
        }
      left -= W::chunk_bytes;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        units chunk[kChunkVectors];
        W::load(row[n], B::has_zero_point ? pick(zero[n], block) : units(0u), chunk);
        row[n] += W::chunk_bytes;
#pragma unroll
        for (int g = 0; g < apart; ++g) {
          const floats weight_scale = B::block_k != 0 ? pick(scale[n], block + uint32(g * per_group)) : floats(1.0f);
          constexpr int vectors = kChunkVectors / apart;
#pragma unroll
          for (int r = 0; r < R; ++r) {
            typename W::sums acc = 0;
#pragma unroll
            for (int j = g * vectors; j < (g + 1) * vectors; ++j)
              W::dot(acc, load<units>(x[r] + (c * kChunkVectors + j) * 16), chunk[j]);
            result[r * N + n] = multiply_add<CpuIsa::avx512, 16>(__builtin_convertvector(acc, floats),
                                                                 weight_scale * scales[r][c], result[r * N + n]);
          }
        }
      }
    }
  }
  return sum_tile<16, R, N>(result);
}

// chunk rows form over `num_matrices` matrices of num_n rows and num_tokens tokens: c[m][t * c_stride + n]. Tokens are rows
// of `dtype`, addressed by bytes. After the last matrix the rows of `next` are read. Not inlined, like rows_form.
template <class W, DType dtype, class B>
[[gnu::noinline]] inline void chunk_rows_form(int num_matrices, const uint8* const* w, const uint8* next, int64 w_stride,
                                              int num_n, const B* blocks, const uint8* const* tokens,
                                              const TokenScales* token_scales, int num_tokens, int64 k, float* const* c,
                                              int c_stride, ChunkInputs inputs) {
  static_assert(B::input_block_k % kChunkK == 0, "a chunk of inputs has one scale");
  const auto pass = [&](auto tokens_in_tile, auto rows_in_tile, int t0) {
    constexpr int R = decltype(tokens_in_tile)::value;
    constexpr int N = decltype(rows_in_tile)::value;
    const int there = num_tokens - t0 < R ? num_tokens - t0 : R;
    if constexpr (B::block_k != 0)
      for (int i = 0; i < num_matrices * N; ++i) blocks[i / N].ask(i % N * ceil_div(num_n, N));
    for (int64 k0 = 0; k0 < k; k0 += kPreparedK) {
      const int64 num_k = k - k0 < kPreparedK ? k - k0 : kPreparedK;
      const uint32* x[R];
      const float* scales[R];
      for (int r = 0; r < R; ++r) {
        const int at = r < there ? r : there - 1;
        if (r < there) {
          W::template prepare<dtype>(reinterpret_cast<const element_t<dtype>*>(tokens[t0 + r]), k0, num_k, k,
                                     inputs.units[r], inputs.scales[r]);
          if constexpr (B::input_blocks)
            for (int64 chunk = 0; chunk * kChunkK < num_k; ++chunk)
              inputs.scales[r][chunk] *= token_scales[t0 + r].scale[(k0 + chunk * kChunkK) / B::input_block_k];
        }
        x[r] = inputs.units[at];
        scales[r] = inputs.scales[at];
      }
      const int64 from = k0 * W::bits / 8, to = ceil_div((k0 + num_k) * W::bits, 8);
      const uint8* const after = k0 + num_k < k ? w[0] + (to - from) : next - from;
      for (int m = 0; m < num_matrices; ++m)
        for (int64 n0 = 0; n0 < ceil_div(num_n, N); ++n0) {
          const auto rows = Streams<N>::of(n0, num_n, w[m], w_stride, from, to, m + 1 < num_matrices ? w[m + 1] : after);
          const auto sums = chunk_tile<W, R, N>(w[m], w_stride, rows, blocks[m], x, scales, k0, num_k, k);
          for (int r = 0; r < there; ++r) rows.scatter(sums.token[r], k0 != 0, c[m] + (t0 + r) * c_stride);
        }
    }
  };
  if (num_tokens == 1) {
    pass(Int<1>{}, Int<4>{}, 0);
  } else {
    for (int t0 = 0; t0 < num_tokens;) {
      if (num_tokens - t0 <= 2) pass(Int<2>{}, Int<4>{}, t0), t0 += 2;
      else pass(Int<kChunkTokens>{}, Int<2>{}, t0), t0 += kChunkTokens;
    }
  }
}

}  // namespace jitmoe::cpu

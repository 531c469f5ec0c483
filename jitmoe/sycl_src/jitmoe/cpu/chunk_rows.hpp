// SPDX-License-Identifier: MIT
// chunk rows form: rows form (tiles.hpp) for codes that are faster to convert 128 at a time, with inputs prepared to suit
// them.
//
// Integer codes are made unsigned bytes, by adding an offset, and meet inputs that are 14-bit fixed-point numbers, as two
// signed bytes: x = 256 high + low. VPDPBUSD multiplies and adds 64 products of bytes in a cycle or less, half as many of
// numbers as VPDPWSSD would, but bytes take two or three instructions per 128 codes of 4 bits instead of seven. Inputs of a
// chunk are integers times the power of two that brings the largest to 14 bits, so bf16 inputs of at least 1/64 of it are
// exact, and no input is off by more than 2^-14 of it (inputs below 2^-113 are zero). Sums of a chunk are exact: they begin at
// minus the offset times the sum of the inputs; they are multiplied by both scales and added up in fp32. E2M1 holds
// multiples of 1/2: twice its values are integers.
//
// FP8 becomes bf16 byte by byte, each bit of which is a bit of the code or the inverse of one. What has no exponent of its own
// has no such form: 128 codes with a subnormal, an infinity or a NaN go the way of codes.hpp. VDPBF16PS multiplies them.
//
// A chunk's codes are vectors in parts, which hold k one after the other; lane l of a part holds, in order,
//
//   8-bit integers   2 parts of 64 k, a vector each: k = 4 l .. 4 l + 3
//   4-bit codes      1 part of 128 k, two vectors: even k of 8 l .. 8 l + 7 and odd ones
//   FP8              2 parts of 64 k, two vectors each, as VPUNPCK interleaves 64 low and high bytes of bf16
//
// so blocks of scales that are parts of a chunk (32 or 64 k) are parts, or lanes of parts that lie beside each other.
//
// Letters: t token, n weight row, k element of K, c chunk.
#pragma once

#include <jitmoe/cpu/fp8_bits.hpp>
#include <jitmoe/cpu/tiles.hpp>

namespace jitmoe::cpu {

constexpr int kChunkK = 128;      // plan/cpu.py names the same number
constexpr int kPreparedK = 4096;  // elements of K between two visits of the result
constexpr int kChunkTokens = 4;   // of one pass
constexpr int kPreparedUnits = kPreparedK / kChunkK * 6 * 16;  // at most 6 vectors per chunk
constexpr int kPreparedScales = kPreparedK / kChunkK + 16;     // whole vectors are read

// Inputs of one pass; `units` is memory that other forms use as well.
struct ChunkInputs {
  uint32 (*units)[kPreparedUnits];        // [kChunkTokens]
  float (*scales)[kPreparedScales];  // [kChunkTokens], per chunk
};

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

// result = index's bytes, all below 16, looked up in 16 bytes (VPSHUFB).
inline Vec<uint32, 16> look_up_bytes(Vec<uint32, 16> index, Vec<uint32, 16> table) {
  Vec<uint32, 16> result = index;
#ifdef __SYCL_DEVICE_ONLY__
  asm("vpshufb %1, %2, %0" : "=v"(result) : "v"(index), "v"(table));
#else
  (void)table;
#endif
  return result;
}

// Codes as unsigned bytes, inputs as pairs of signed bytes.
template <Encoding encoding, bool has_zero_point> struct IntegerChunks {
  using units = Vec<uint32, 16>;
  using sums = Vec<int32, 16>;
  static constexpr int bits = code_bits(encoding);
  static constexpr int chunk_bytes = kChunkK * bits / 8;
  static constexpr int code_vectors = 2;
  static constexpr int parts = bits == 8 ? 2 : 1;
  static constexpr int input_vectors = 4 + parts;  // low and high bytes for each vector of codes; what sums begin at
  static constexpr float unit = encoding == Encoding::e2m1 ? 0.5f : 1.0f;  // what a 1 stands for
  static constexpr int32 offset = encoding == Encoding::int8 ? 128 : encoding == Encoding::e2m1 ? 12 : 8;

  // What the sum of the inputs is multiplied by, for sums to begin at, if codes have these zero points.
  static sums begin(Vec<uint32, 16> points) { return -bit_cast<sums>(points); }

  static void load(const uint8* at, units (&codes)[code_vectors]) {
    if constexpr (encoding == Encoding::int8) {
#pragma unroll
      for (int v = 0; v < 2; ++v) codes[v] = cpu::load<units>(at + 64 * v) ^ 0x80808080u;
    } else {
      const auto both = cpu::load<units>(at);
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const units nibbles = (v == 0 ? both : both >> 4) & 0x0f0f0f0fu;
        if constexpr (encoding == Encoding::e2m1) codes[v] = look_up_bytes(nibbles, table());
        else codes[v] = encoding == Encoding::int4 ? nibbles ^ 0x08080808u : nibbles;
      }
    }
  }

  // Sums of `count` parts from `first` on.
  template <int first, int count>
  static sums multiply(const uint32* inputs, const units (&codes)[code_vectors], const sums& zero) {
    const auto input = [&](int v) { return cpu::load<units>(inputs + 16 * v); };
    constexpr int vectors = code_vectors / parts;
    sums low = bit_cast<sums>(input(4 + first)), high = sums(0);
#pragma unroll
    for (int p = first + 1; p < first + count; ++p) low += bit_cast<sums>(input(4 + p));
    if constexpr (has_zero_point) low *= zero;
#pragma unroll
    for (int v = first * vectors; v < (first + count) * vectors; ++v) {
      dot_int8(low, input(2 * v), codes[v]);
      dot_int8(high, input(2 * v + 1), codes[v]);
    }
    return low + (high << 8);
  }

  // Writes elements [k0, k0 + num_k) of a row of K elements, which have at most 11 significant bits, as chunks of
  // fixed-point numbers; zero past K.
  template <DType dtype>
  [[gnu::noinline]] static void prepare(const element_t<dtype>* row, int64 k0, int64 num_k, int64 k, uint32* to,
                                        float* scales) {
    using F = Vec<float, 16>;
    using U = Vec<uint32, 16>;
    constexpr int vectors = kChunkK / 16;
    constexpr int top_bit = 13;
#pragma clang loop unroll(disable)
    for (int64 c = 0; c * kChunkK < num_k; ++c, to += 16 * input_vectors) {
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
      const bool is_finite = exponent < 255, is_zero = exponent <= top_bit;
      scales[c] = is_zero ? 0.0f : is_finite ? bit_cast<float>((exponent - top_bit) << 23) * unit : __builtin_nanf("");
      const float inverse = is_zero || !is_finite ? 0.0f : bit_cast<float>((254 + top_bit - exponent) << 23);
      constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
      auto* const bytes = reinterpret_cast<uint8*>(to);
#pragma unroll
      for (int i = 0; i < vectors; i += 2) {
        U numbers[2];
#pragma unroll
        for (int j = 0; j < 2; ++j)
          numbers[j] = bit_cast<U>((is_finite ? values[i + j] : F(0.0f)) * inverse + kRoundMagic);
        if constexpr (bits == 4) deal(numbers[0], numbers[1], numbers[0], numbers[1]);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int vector = bits == 4 ? j : (i + j) / 4, place = bits == 4 ? i / 2 : (i + j) % 4;
          uint8* const at = bytes + 128 * vector + 16 * place;
          store(at, __builtin_convertvector(numbers[j], Vec<uint8, 16>));
          store(at + 64, __builtin_convertvector((numbers[j] + 128u) >> 8, Vec<uint8, 16>));
        }
      }
      sum_up<0>(to);
      if constexpr (parts == 2) sum_up<1>(to);
    }
  }

 private:
  // Writes what the sums of a part begin at: the sum of the inputs if it is known only then what it is multiplied by.
  template <int part> static void sum_up(uint32* inputs) {
    units ones[code_vectors];
#pragma unroll
    for (int v = 0; v < code_vectors; ++v) ones[v] = units(0x01010101u);
    uint32* const to = inputs + 16 * (4 + part);
    store(to, units(0u));
    const sums sum = multiply<part, 1>(inputs, ones, sums(0));
    store(to, has_zero_point ? sum : sum * -offset);
  }

  // Twice 0 0.5 1 1.5 2 3 4 6 and their negatives, and the offset.
  static units table() {
    constexpr uint32 words[4] = {0x0f0e0d0c, 0x18141210, 0x090a0b0c, 0x00040608};
    units result;
    for (int l = 0; l < 16; ++l) result[l] = words[l % 4];
    return result;
  }
};

// FP8 as pairs of bf16, a chunk at a time.
template <Encoding encoding> struct Fp8Chunks {
  using S = Simd<CpuIsa::avx512_bf16, DType::bf16>;
  using units = S::units;
  using sums = S::floats;
  static constexpr int bits = 8;
  static constexpr int chunk_bytes = kChunkK;
  static constexpr int code_vectors = 4, parts = 2, input_vectors = 4;

  template <int first, int count>
  static sums multiply(const uint32* inputs, const units (&codes)[code_vectors], const Vec<int32, 16>&) {
    sums acc = 0;
#pragma unroll
    for (int v = 2 * first; v < 2 * (first + count); ++v) dot_bf16(acc, cpu::load<units>(inputs + 16 * v), codes[v]);
    return acc;
  }

  static void load(const uint8* at, units (&chunk)[code_vectors]) {
    const units codes[2] = {cpu::load<units>(at), cpu::load<units>(at + 64)};
    if (Fp8Bits<encoding>::to_bf16(codes, chunk)) [[likely]] return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      chunk[2 * half] = fp8_pairs<encoding>(sign_words(interleave_low(codes[half], codes[half])));
      chunk[2 * half + 1] = fp8_pairs<encoding>(sign_words(interleave_high(codes[half], codes[half])));
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

// The first 16 / times of 16 floats, each in `times` lanes beside each other.
template <int times> inline Vec<float, 16> repeated(const float* from) {
  const auto all = load<Vec<float, 16>>(from);
  if constexpr (times == 1) return all;
  else if constexpr (times == 2) return pick(all, Vec<uint32, 16>{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7});
  else return pick(all, block_of_lane<4>());
}

// token[r][n] = sum over k in [k0, k0 + num_k) of x[r][k] * w[row n][k]; missing rows repeat the last one. The rows of w
// are those of `blocks` and K elements long.
template <class W, int R, int N, class B>
inline RowsResult<R, N> chunk_tile(const uint8* w, int64 w_stride, Streams<N> rows, const B& blocks,
                                   const uint32* const (&x)[R], const float* const (&scales)[R], int64 k0, int64 num_k,
                                   int64 k) {
  using floats = Vec<float, 16>;
  using units = typename W::units;
  constexpr bool is_cut = B::block_k != 0 && B::block_k < kChunkK;
  constexpr int per_chunk = is_cut ? kChunkK / (B::block_k == 0 ? 1 : B::block_k) : 1;  // blocks
  constexpr int groups = W::parts < per_chunk ? W::parts : per_chunk;  // of parts, that are scaled together
  constexpr int per_group = per_chunk / groups;                        // blocks, beside each other in lanes
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
  const auto for_each_group = [](const auto& use) {
    use(Int<0>{});
    if constexpr (groups == 2) use(Int<1>{});
  };
  floats factor[R * N];    // products of both scales; per_chunk lanes belong to a chunk
  Vec<int32, 16> zero[N];  // likewise
  const int64 num_chunks = ceil_div(num_k, kChunkK);
  for (int64 c0 = 0; c0 < num_chunks; c0 += at_once) {
    const int64 end = c0 + at_once < num_chunks ? c0 + at_once : num_chunks;
    if constexpr (B::block_k != 0) {
      const int64 last_k = (k0 + end * kChunkK < k ? k0 + end * kChunkK : k) - 1;
      const int64 first_block = (k0 + c0 * kChunkK) / B::block_k;
      const int count = int(last_k / B::block_k - first_block) + 1;
      const auto by_chunk = [&](auto by_block) {
        if constexpr (B::block_k <= kChunkK) return by_block;
        Vec<uint32, 16> block;
        for (int l = 0; l < 16; ++l) block[l] = uint32((k0 + (c0 + l) * kChunkK) / B::block_k - first_block);
        return pick(by_block, block);
      };
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const floats scale = by_chunk(row_scales[n].scales(first_block, count));
#pragma unroll
        for (int r = 0; r < R; ++r) factor[r * N + n] = scale * repeated<per_chunk>(scales[r] + c0);
        if constexpr (B::has_zero_point) zero[n] = by_chunk(W::begin(row_scales[n].zeros(first_block, count)));
      }
    }
#pragma clang loop unroll(disable)
    for (int64 c = c0; c < end; ++c) {
      const auto lane = block_of_lane<per_group>() + uint32(c - c0) * per_chunk;
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
        units codes[W::code_vectors];
        W::load(row[n], codes);
        row[n] += W::chunk_bytes;
        Vec<int32, 16> begin = 0;
        if constexpr (B::has_zero_point) begin = pick(zero[n], lane);
        for_each_group([&](auto group) {
          constexpr int g = decltype(group)::value, parts = W::parts / groups;
#pragma unroll
          for (int r = 0; r < R; ++r) {
            const auto acc = W::template multiply<g * parts, parts>(x[r] + c * W::input_vectors * 16, codes, begin);
            const floats by = B::block_k != 0 ? pick(factor[r * N + n], lane + uint32(g * per_group)) : floats(scales[r][c]);
            result[r * N + n] =
                multiply_add<CpuIsa::avx512, 16>(__builtin_convertvector(acc, floats), by, result[r * N + n]);
          }
        });
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

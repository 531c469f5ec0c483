// SPDX-License-Identifier: MIT
// The three inner loops of the CPU kernels. All compute C = A W^T for some tokens of one expert, in fp32.
//
//   rows form    few tokens, W [N][K] (k dense): lanes run along K, so each weight is read once, in storage order, at
//                memory speed; lanes are summed at the end.
//   lanes form   many tokens, W [N][K]: a lane is a token. The tokens are packed in panels (Panel); a weight unit is one
//                dword of the untouched tensor, broadcast. So weights are never repacked.
//   columns form W [K][N] (n dense): lanes run along N, token units are broadcast.
//
// Rows and lanes form take weights of any format (codes.hpp) and work block by block of K where blocks have scales
// (scales.hpp): the sums of a block are multiplied by them and added to the result.
//
// The weights that come next are asked for while others are multiplied: by the rows form a few lines ahead of where it
// reads (Streams), by the lanes form those of the next tile.
//
// Letters: t token of the block, n weight row, k element of K, u unit of K (see simd.hpp), P padded tokens.
#pragma once

#include <jitmoe/cpu/routing.hpp>
#include <jitmoe/cpu/scales.hpp>

namespace jitmoe::cpu {

template <class S, bool blocked = false> struct TileShape {
  static constexpr bool many_registers = simd_lanes(S::isa) == 16;  // 32 instead of 16 vector registers
  static constexpr int lanes_form_rows = 6;                         // weight rows per tile
  static constexpr int lanes_form_vectors = many_registers ? 4 : 2;  // token vectors per tile
  static constexpr int rows_form_rows = many_registers ? 4 : 2;  // for one token
  static constexpr int rows_form_tokens = 4;
  static constexpr int rows_form_shared_rows = rows_form_rows / (blocked ? 2 : 1);  // sums of blocks need registers too
  static constexpr int columns_form_tokens = many_registers ? 12 : 6;  // at 2 vectors
};

// Tokens of one block as the lanes form reads them: panel[part][unit][token of the part]. A part has as many tokens as a
// tile of sums has room for, so that a tile reads a dense piece; all parts of a block have the same width.
template <class S> struct Panel {
  static int width(int padded) {
    constexpr int tile = TileShape<S>::lanes_form_vectors * S::lanes;
    static_assert(kSlotGranule % tile == 0 || tile >= kMaxBlockTokens, "parts have the same width");
    return padded < tile ? padded : tile;
  }
  // Where unit u of token t is if the panel has `units` units per token.
  static int64 at(int padded, int64 units, int t, int64 u) {
    const int w = width(padded);
    return t / w * w * units + u * w + t % w;
  }
};

// The weight rows that one tile of the rows form multiplies together lie apart, at the same place of N equal parts of all
// rows. So there are N streams of weights that go on where the tile before ended, each in pages of its own: what the
// hardware sees patterns in, and a few lines ahead of it are asked for, past the end of the stream those that are read next.
constexpr int kStreamAhead = 1024;  // bytes

template <int N> struct Streams {
  int64 first, apart, num_rows;
  int64 end;   // bytes from the beginning of a row to where its stream breaks off
  int64 jump;  // from there to where it goes on

  // Tile n0 of num_rows rows of w, of whose bytes [from, to) are read, and then those of `next`, which is laid out alike.
  static Streams of(int64 n0, int64 num_rows, const uint8* w, int64 w_stride, int64 from, int64 to, const uint8* next) {
    const int64 apart = ceil_div(num_rows, N);
    const bool is_dense = from == 0 && to == w_stride;
    const int64 end = is_dense ? (apart - n0) * w_stride : to;
    const int64 on = !is_dense && n0 + 1 < apart ? w_stride : next - (w + n0 * w_stride);
    return {n0, apart, num_rows, end, on + from - end};
  }

  // How far from byte `at` of a row the bytes are that will be read kStreamAhead bytes later.
  int64 ahead(int64 at) const { return at + kStreamAhead < end ? kStreamAhead : kStreamAhead + jump; }
  int64 row(int n) const { return first + n * apart; }
  bool has(int n) const { return row(n) < num_rows; }
  int64 row_or_last(int n) const { return has(n) ? row(n) : num_rows - 1; }

  // Stores what belongs to the rows at their places.
  void scatter(Vec<float, N> values, bool accumulate, float* to) const {
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (has(n)) to[row(n)] = accumulate ? to[row(n)] + values[n] : values[n];
  }
};

// Asks for num_bytes of each row, `ahead` bytes from here.
template <int num_bytes, int N> inline void prefetch_streams(const uint8* const (&row)[N], int64 ahead) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int line = 0; line < num_bytes; line += 64) prefetch(row[n] + ahead + line);
}

template <int R, int N> struct RowsResult { Vec<float, N> token[R]; };

// The lanes of the sums [R][N] of a tile, added up; whole registers of them are summed together.
template <int lanes, int R, int N> inline RowsResult<R, N> sum_tile(const Vec<float, lanes> (&sums)[R * N]) {
  constexpr int together = R * N < lanes ? R * N : lanes;
  RowsResult<R, N> total;
#pragma unroll
  for (int i = 0; i < R * N; i += together) {
    Vec<float, lanes> group[together];  // a copy: results whose address is taken would not stay in registers
#pragma unroll
    for (int j = 0; j < together; ++j) group[j] = sums[i + j];
    const auto part = sum_lanes<lanes, together>(group);
    __builtin_memcpy(reinterpret_cast<float*>(&total) + i, &part, sizeof(part));
  }
  return total;
}

// rows form: token[r][n] = sum over k of a[r][k] * w[row n][k]; missing rows repeat the last one. The rows of w are those
// of `blocks`. Rows and tokens are addressed by bytes.
template <class W, class A, int R, int N, class B>
inline RowsResult<R, N> rows_tile(const uint8* w, int64 w_stride, Streams<N> rows, const B& blocks,
                                  const uint8* const (&a)[R], const TokenScales (&scales)[R], int64 k) {
  using S = typename W::S;
  using floats = typename S::floats;
  using sums = typename S::sums;
  constexpr int step = S::step;
  constexpr int steps_per_line = W::step_bytes < 64 ? 64 / W::step_bytes : 1;
  const uint8* row[N];
  const uint8* token[R];
  uint8 w_tail[N][W::step_bytes];
  uint8 a_tail[R][A::step_bytes];
  const auto start_at = [&](int64 from) {
#pragma unroll
    for (int r = 0; r < R; ++r) token[r] = a[r] + from * A::bits / 8;
#pragma unroll
    for (int n = 0; n < N; ++n) row[n] = w + w_stride * rows.row_or_last(n) + from * W::bits / 8;
  };
  const auto multiply = [&](sums (&acc)[R * N], int64 from, int64 to, const uint32 (&zero)[N]) {
    for (int64 at = from; at < to; at += step) {
      if (at + step > to) {  // the last, partial step reads zero-padded copies
        for (int n = 0; n < N; ++n) {
          copy_tail(row[n], ceil_div((to - at) * W::bits, 8), w_tail[n], W::step_bytes);
          row[n] = w_tail[n];
        }
        for (int r = 0; r < R; ++r) {
          copy_tail(token[r], (to - at) * A::bits / 8, a_tail[r], A::step_bytes);
          token[r] = a_tail[r];
        }
      }
      if (steps_per_line == 1 || at / step % steps_per_line == 0)
        prefetch_streams<W::step_bytes * steps_per_line>(row, rows.ahead(at * W::bits / 8));
      typename S::units weights[N];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        weights[n] = W::load(row[n], zero[n]);
        row[n] += W::step_bytes;
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const auto tokens = A::load(token[r], 0);
        token[r] += A::step_bytes;
#pragma unroll
        for (int n = 0; n < N; ++n) S::accumulate(acc[r * N + n], tokens, weights[n]);
      }
    }
  };

  floats result[R * N];
#pragma unroll
  for (int i = 0; i < R * N; ++i) result[i] = floats(0.0f);
  start_at(0);
  if constexpr (B::block_k == 0) {
    static_assert(!S::quads, "quads count in blocks");
    multiply(result, 0, k, {});
  } else {
    constexpr int at_once = 32;  // blocks whose scales are read together
    float scale[N][at_once];
    uint32 zero[N][at_once];
    const int64 num_blocks = ceil_div(k, B::block_k);
    for (int64 b0 = 0; b0 < num_blocks; b0 += at_once) {
      const int count = int(num_blocks - b0 < at_once ? num_blocks - b0 : at_once);
      for (int n = 0; n < N; ++n)
        blocks.template read<W>(rows.row_or_last(n), b0, count, scale[n], zero[n]);
#pragma clang loop unroll(disable)
      for (int i = 0; i < count; ++i) {
        const int64 from = (b0 + i) * B::block_k;
        const int64 to = from + B::block_k < k ? from + B::block_k : k;
        if constexpr (B::block_k % step != 0) start_at(from);
        sums acc[R * N];
        uint32 zeros[N] = {};
        float token_scale[R];
#pragma unroll
        for (int n = 0; n < N; ++n)
          if constexpr (B::has_zero_point) zeros[n] = zero[n][i];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          token_scale[r] = B::input_blocks ? scales[r].scale[B::input_index(b0 + i)] : 1.0f;
#pragma unroll
          for (int n = 0; n < N; ++n) {
            acc[r * N + n] = sums(0);
            if constexpr (S::quads) acc[r * N + n][0] = scales[r].correction[b0 + i];
          }
        }
        multiply(acc, from, to, zeros);
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int n = 0; n < N; ++n) {
            const floats scaled = floats(B::input_blocks ? scale[n][i] * token_scale[r] : scale[n][i]);
            floats& sum = result[r * N + n];
            sum = multiply_add<S::isa, S::lanes>(S::to_floats(acc[r * N + n]), scaled, sum);
          }
      }
    }
  }
  return sum_tile<S::lanes, R, N>(result);
}

// rows form over `num_matrices` matrices of num_n rows and num_tokens tokens: c[m][t * c_stride + n]. After the last matrix
// the rows of `next` are read. Weights that several passes need stay in the cache. Two or three tokens waste a part of the
// tile, which costs nothing: memory decides then. Not inlined, so that both GEMMs of cpu_single share it.
template <class W, class A, class B>
[[gnu::noinline]] inline void rows_form(int num_matrices, const uint8* const* w, const uint8* next, int64 w_stride, int num_n,
                                        const B* blocks, const uint8* const* a, const TokenScales* scales, int num_tokens,
                                        int64 k, float* const* c, int c_stride) {
  using Shape = TileShape<typename W::S, B::block_k != 0>;
  constexpr int T = Shape::rows_form_tokens;
  const auto pass = [&](auto tokens_in_tile, auto rows_in_tile, int m, int t0, int64 n0) {
    constexpr int R = decltype(tokens_in_tile)::value;
    constexpr int N = decltype(rows_in_tile)::value;
    const uint8* tokens[R];
    TokenScales token_scales[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int t = t0 + r < num_tokens ? t0 + r : num_tokens - 1;
      tokens[r] = a[t];
      token_scales[r] = B::has_token_scales ? scales[t] : TokenScales{};
    }
    const auto rows = Streams<N>::of(n0, num_n, w[m], w_stride, 0, ceil_div(k * W::bits, 8),
                                     m + 1 < num_matrices ? w[m + 1] : next);
    const auto sums = rows_tile<W, A, R, N, B>(w[m], w_stride, rows, blocks[m], tokens, token_scales, k);
    for (int r = 0; r < R && t0 + r < num_tokens; ++r) rows.scatter(sums.token[r], false, c[m] + (t0 + r) * c_stride);
  };
  for (int m = 0; m < num_matrices; ++m) {
    if (num_tokens == 1) {
      constexpr int N = Shape::rows_form_rows;
      for (int64 n0 = 0; n0 < ceil_div(num_n, N); ++n0) pass(Int<1>{}, Int<N>{}, m, 0, n0);
    } else {
      constexpr int N = Shape::rows_form_shared_rows;
      for (int64 n0 = 0; n0 < ceil_div(num_n, N); ++n0)
        for (int t0 = 0; t0 < num_tokens; t0 += T) pass(Int<T>{}, Int<N>{}, m, t0, n0);
    }
  }
}

// Token elements that the next chunk of the lanes form will read: `num_bytes` from each of `num_rows` addresses. They are
// asked for a few cache lines at a time while this chunk is multiplied.
struct SoonTokens {
  const uint8* const* rows = nullptr;
  int64 column = 0;
  int64 num_bytes = 0;
  int num_rows = 0;
  int lines_at_once = 0;
  int row = 0;
  int64 at = 0;

  SoonTokens() = default;
  // `times` is how often fetch() will be called.
  SoonTokens(const uint8* const* rows, int num_rows, int64 column, int64 num_bytes, int64 times)
      : rows(rows),
        column(column),
        num_bytes(num_bytes),
        num_rows(num_rows),
        lines_at_once(int(ceil_div(num_rows * ceil_div(num_bytes, 64), times))) {}

  void fetch() {
#pragma clang loop unroll(disable)
    for (int i = 0; i < lines_at_once && row < num_rows; ++i) {
      prefetch(rows[row] + column + at);
      at += 64;
      if (at >= num_bytes) {
        at = 0;
        ++row;
      }
    }
  }
};

// lanes form: c[n * c_stride + t] (+)= sum over u of part[u][t] * w[n][u] for NR rows and TV vectors of tokens, times the
// scales if `scaled`. Rows are addressed by bytes: those of an odd K are only 2-byte aligned. Weights `ahead` bytes
// further are prefetched.
template <class S, bool scaled, int NR, int TV>
inline void lanes_tile(const uint32* part, const uint8* const (&w)[NR], int64 ahead, int64 num_units,
                       SoonTokens& soon, LanesScales scales, float* c, int c_stride, bool accumulate) {
  using floats = typename S::floats;
  using sums = typename S::sums;
  using units = typename S::units;
  constexpr int kLineUnits = 16;
  constexpr int kUnroll = TV == TileShape<S>::lanes_form_vectors ? 2 : 1;  // 4 take a tenth longer to compile
  sums acc[NR][TV];
#pragma unroll
  for (int n = 0; n < NR; ++n)
#pragma unroll
    for (int v = 0; v < TV; ++v) {
      if constexpr (S::quads) acc[n][v] = sums(scales.corrections[n]);
      else if constexpr (scaled) acc[n][v] = sums(0);
      else acc[n][v] = accumulate ? load<floats>(c + n * c_stride + v * S::lanes) : floats(0.0f);
    }
  const auto multiply = [&](int64 u) {
    units tokens[TV];
#pragma unroll
    for (int v = 0; v < TV; ++v) tokens[v] = load<units>(part + (u * TV + v) * S::lanes);
#pragma unroll
    for (int n = 0; n < NR; ++n) {
      const units weight = units(load<uint32>(w[n] + u * 4));
#pragma unroll
      for (int v = 0; v < TV; ++v) {
        if constexpr (S::quads) dot_int8(acc[n][v], weight, tokens[v]);
        else S::accumulate(acc[n][v], tokens[v], weight);
      }
    }
  };
  int64 u = 0;
  while (u < num_units) {
    if (ahead != 0)
#pragma unroll
      for (int n = 0; n < NR; ++n) prefetch(w[n] + u * 4 + ahead);
    soon.fetch();
    const int64 line_end = u + kLineUnits < num_units ? u + kLineUnits : num_units;
    if constexpr (kUnroll > 1)
#pragma clang loop unroll(disable)
      for (; u + kUnroll <= line_end; u += kUnroll)
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) multiply(u + i);
#pragma clang loop unroll(disable)
    for (; u < line_end; ++u) multiply(u);
  }
#pragma unroll
  for (int v = 0; v < TV; ++v) {
    const floats token_scale = scaled && scales.tokens ? load<floats>(scales.tokens + v * S::lanes) : floats(1.0f);
#pragma unroll
    for (int n = 0; n < NR; ++n) {
      float* const at = c + n * c_stride + v * S::lanes;
      if constexpr (scaled) {
        const floats before = accumulate ? load<floats>(at) : floats(0.0f);
        store(at, multiply_add<S::isa, S::lanes>(S::to_floats(acc[n][v]), token_scale * scales.rows[n], before));
      } else {
        store(at, acc[n][v]);
      }
    }
  }
}

// Sum of the signed bytes of num_units quads.
template <class S> inline int32 sum_bytes(const uint8* from, int64 num_units) {
  typename S::sums acc = 0;
  int64 u = 0;
  for (; u + S::lanes <= num_units; u += S::lanes)
    dot_int8(acc, load<typename S::units>(from + 4 * u), typename S::units(0x01010101u));
  int32 sum = 0;
#pragma unroll
  for (int l = 0; l < S::lanes; ++l) sum += acc[l];
  for (int64 i = 4 * u; i < 4 * num_units; ++i) sum += int8(from[i]);
  return sum;
}

// How often lanes_form asks for `soon` tokens.
template <class S> inline int64 lanes_fetches(int num_n, int padded, int64 num_units) {
  using Shape = TileShape<S>;
  const int64 tiles = ceil_div(num_n, Shape::lanes_form_rows) * ceil_div(padded, Shape::lanes_form_vectors * S::lanes);
  return tiles * ceil_div(num_units, 16);
}

// One group of NR weight rows against all parts of the panel.
template <class S, bool scaled, int NR>
inline void lanes_group(const uint32* panel, int64 panel_units, int padded, const uint8* const (&w)[NR], int64 ahead,
                        int64 num_units, SoonTokens& soon, const LanesScales& scales, float* c, int c_stride, bool accumulate) {
  constexpr int TV = TileShape<S>::lanes_form_vectors;
  int t = 0;
  while (t < padded) {
    const auto pass = [&](auto vectors) {
      constexpr int V = decltype(vectors)::value;
      const LanesScales here{scales.rows, scales.tokens ? scales.tokens + t : nullptr, scales.corrections};
      lanes_tile<S, scaled, NR, V>(panel + Panel<S>::at(padded, panel_units, t, 0), w, ahead, num_units, soon, here, c + t,
                                   c_stride, accumulate);
      t += V * S::lanes;
    };
    const int left = (padded - t) / S::lanes;
    if (left >= TV) {
      pass(Int<TV>{});
    } else if (left == 1) {
      pass(Int<1>{});
    } else if (TV > 3 && left == 3) {
      if constexpr (TV > 3) pass(Int<3>{});
    } else {
      if constexpr (TV > 2) pass(Int<2>{});
    }
    ahead = 0;  // asked for already
  }
}

// lanes form over num_n weight rows and units [u0, u0 + num_units) of K: c[n * c_stride + t]. `panel` begins with unit u0
// and has panel_units units per token.
// Computes whole groups of rows: c has room for num_n rounded up to lanes_form_rows, and what lies past num_n is
// junk. `after` is the address of the weights that are needed next, `soon` are tokens. `staged` has room for
// lanes_form_rows * (num_units rounded up to lanes) units: weights go through it where they need conversion, and where K
// is odd and the last unit is not all in memory. With blocks, the units belong to one of them.
template <class W, class B>
[[gnu::noinline]] void lanes_form(const uint8* w, int64 w_stride, int num_n, const B& blocks, const uint32* panel,
                                  int64 panel_units, int padded, int64 k, int64 u0, int64 num_units,
                                  const void* after, SoonTokens& soon, LanesScales scales, float* c, int c_stride,
                                  uint32* staged) {
  using S = typename W::S;
  constexpr int NR = TileShape<S>::lanes_form_rows;
  const bool in_place = (W::direct || S::quads) && (u0 + num_units) * S::k_per_unit <= k;
  const int64 stage_stride = align_up(num_units, S::lanes);
  const int64 column = u0 * S::k_per_unit * W::bits / 8;
  const int64 last = ceil_div(k * W::bits, 8) - column;  // bytes from there to the end of a row
  for (int n0 = 0; n0 < num_n; n0 += NR) {
    const uint8* first = w + n0 * w_stride + column;
    const int64 ahead = n0 + NR < num_n ? NR * w_stride : (const uint8*)after - first;
    const uint8* units[NR];
    float row_scales[NR];
    uint32 zeros[NR] = {};
#pragma unroll
    for (int n = 0; n < NR; ++n) {
      const int there = n0 + n < num_n ? n0 + n : num_n - 1;
      units[n] = w + there * w_stride + column;
      if constexpr (B::block_k != 0)
        blocks.template read<W>(there, u0 * S::k_per_unit / B::block_k, 1, row_scales + n, zeros + n);
    }
    if (!in_place) {
#pragma clang loop unroll(disable)
      for (int n = 0; n < NR; ++n) {
        int64 u = 0;
        if constexpr (W::bits >= 16) {  // quick to convert: the loop would take as long
          constexpr int together = 4;
          constexpr int bytes = together * W::step_bytes;
          const int64 whole = last / bytes * together * S::lanes;
#pragma clang loop unroll(disable)
          for (; u + together * S::lanes <= num_units && u < whole; u += together * S::lanes) {
            const uint8* from = units[n] + u / S::lanes * W::step_bytes;
#pragma unroll
            for (int i = 0; i < bytes; i += 64) prefetch(from + ahead + i);
#pragma unroll
            for (int i = 0; i < together; ++i)
              store(staged + n * stage_stride + u + i * S::lanes, W::load(from + i * W::step_bytes, zeros[n]));
          }
        }
#pragma clang loop unroll(disable)
        for (; u < num_units; u += S::lanes) {
          const int64 at = u / S::lanes * W::step_bytes;
          const uint8* from = units[n] + at;
          uint8 tail[W::step_bytes];
          prefetch(from + ahead);
          if (at + W::step_bytes > last) {
            copy_tail(from, last - at, tail, W::step_bytes);
            from = tail;
          }
          auto converted = W::load(from, zeros[n]);
          if constexpr (S::quads) converted ^= 0x80808080u;  // as in memory
          store(staged + n * stage_stride + u, converted);
        }
        units[n] = reinterpret_cast<const uint8*>(staged + n * stage_stride);
      }
    }
    scales.rows = row_scales;
    int32 corrections[NR];
    if constexpr (S::quads) {
      for (int n = 0; n < NR; ++n) corrections[n] = -128 * sum_bytes<S>(units[n], num_units);
      scales.corrections = corrections;
    }
    lanes_group<S, B::block_k != 0, NR>(panel, panel_units, padded, units, in_place ? ahead : 0, num_units, soon, scales,
                                        c + n0 * c_stride, c_stride, u0 > 0);
  }
}

// Packs units [u0, u0 + num_units) of the `padded` tokens into the panel, which begins with unit u0, has panel_units units
// per token (no matter if all tokens are one part) and room for num_units rounded up to lanes. Byte is any type: tokens
// are rows of S's elements.
template <class S, class Byte>
inline void pack_panel(const Byte* const* tokens, int padded, int64 k, int64 u0, int64 num_units, uint32* panel,
                       int64 panel_units = 0) {
  constexpr int step = S::step;
  typename S::element tails[S::lanes][step];
  for (int t0 = 0; t0 < padded; t0 += S::lanes)
    for (int64 u = 0; u < num_units; u += S::lanes) {
      const int64 at = (u0 + u) * S::k_per_unit;
      const bool whole = at + step <= k;
      typename S::units block[S::lanes];
      const auto row = [&](int t) { return reinterpret_cast<const typename S::element*>(tokens[t0 + t]); };
      if (!whole)
        for (int t = 0; t < S::lanes; ++t) copy_tail(row(t) + at, k - at, tails[t], step);
#pragma unroll
      for (int t = 0; t < S::lanes; ++t) block[t] = S::load_whole(whole ? row(t) + at : tails[t]);
      transpose<S::lanes>(block);
      if constexpr (S::quads)
#pragma unroll
        for (int i = 0; i < S::lanes; ++i) block[i] ^= 0x80808080u;  // int8 + 128: the unsigned side of a product
#pragma unroll
      for (int i = 0; i < S::lanes; ++i) store(panel + Panel<S>::at(padded, panel_units, t0, u + i), block[i]);
    }
}

// lanes weight columns n .. n+lanes-1 of unit u of W [K][N] storage; columns past num_n are zero. `copy` is for tails.
template <class S>
inline typename S::units load_columns(const typename S::element* w, int64 w_stride, int64 u, int64 k, int n, int num_n,
                                      typename S::element (&copy)[2][S::lanes]) {
  using element = typename S::element;
  const element* rows[2];
#pragma unroll
  for (int i = 0; i < S::k_per_unit; ++i) {
    const int64 at = u * S::k_per_unit + i;
    rows[i] = w + at * w_stride + n;
    if (n + S::lanes > num_n || at >= k) {
      copy_tail(rows[i], at < k ? num_n - n : 0, copy[i], S::lanes);
      rows[i] = copy[i];
    }
  }
  if constexpr (S::pairs) {
    const auto even = __builtin_convertvector(load<Vec<uint16, S::lanes>>(rows[0]), typename S::units);
    const auto odd = __builtin_convertvector(load<Vec<uint16, S::lanes>>(rows[1]), typename S::units);
    return even | (odd << 16);
  } else {
    return bit_cast<typename S::units>(load_floats<S::dtype, S::lanes>(rows[0]));
  }
}

constexpr int kColumnsAhead = 16;  // units of K

// columns form: c[t * c_stride + n] = sum over k of a[t][k] * w[k][n]. Each k is in a page of its own, so few tokens take
// many columns of it at once, and the first pass asks for those that are some units of K ahead.
template <class W, class A>
inline void columns_form(const typename W::element* w, int64 w_stride, int num_n,
                         const uint8* const* a, int num_tokens, int64 k, float* c, int c_stride) {
  using floats = typename W::floats;
  constexpr int T = TileShape<W>::columns_form_tokens;
  const int64 num_units = ceil_div(k, W::k_per_unit);
  const auto pass = [&](auto tokens_in_tile, auto vectors, int t0, int n0) {
    constexpr int R = decltype(tokens_in_tile)::value;
    constexpr int V = decltype(vectors)::value;
    typename W::element copy[V][2][W::lanes];
    floats acc[R][V];
    const typename A::element* tokens[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      tokens[r] = reinterpret_cast<const typename A::element*>(a[t0 + r < num_tokens ? t0 + r : num_tokens - 1]);
#pragma unroll
      for (int v = 0; v < V; ++v) acc[r][v] = floats(0.0f);
    }
    for (int64 u = 0; u < num_units; ++u) {
      if (t0 == 0)
#pragma unroll
        for (int i = 0; i < W::k_per_unit; ++i) {
          const auto* const row = w + ((u + kColumnsAhead) * W::k_per_unit + i) * w_stride + n0;
          constexpr int per_line = 64 / sizeof(typename W::element);
#pragma unroll
          for (int n = 0; n < V * W::lanes; n += per_line) prefetch(row + n);
        }
      typename W::units weights[V];
#pragma unroll
      for (int v = 0; v < V; ++v) weights[v] = load_columns<W>(w, w_stride, u, k, n0 + v * W::lanes, num_n, copy[v]);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const auto token = typename W::units(A::load_unit(tokens[r], u, k));
#pragma unroll
        for (int v = 0; v < V; ++v) W::accumulate(acc[r][v], token, weights[v]);
      }
    }
    for (int r = 0; r < R && t0 + r < num_tokens; ++r)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int n = n0 + v * W::lanes;
        for (int l = 0; l < W::lanes && n + l < num_n; ++l) c[(t0 + r) * c_stride + n + l] = acc[r][v][l];
      }
  };
  const auto passes = [&](auto tokens_in_tile, auto vectors) {
    constexpr int R = decltype(tokens_in_tile)::value;
    for (int n0 = 0; n0 < num_n; n0 += decltype(vectors)::value * W::lanes)
      for (int t0 = 0; t0 < num_tokens; t0 += R) pass(tokens_in_tile, vectors, t0, n0);
  };
  if (num_tokens == 1) passes(Int<1>{}, Int<6>{});
  else if (num_tokens <= T / 3) passes(Int<T / 3>{}, Int<6>{});
  else passes(Int<T>{}, Int<2>{});
}

}  // namespace jitmoe::cpu

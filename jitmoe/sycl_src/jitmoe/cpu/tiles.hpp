// SPDX-License-Identifier: MIT
// The three inner loops of the CPU kernels. All compute C = A W^T for some tokens of one expert, in fp32.
//
//   rows form    few tokens, W [N][K] (k dense): lanes run along K, so each weight is read once, in storage order, at
//                memory speed; lanes are summed at the end.
//   lanes form   many tokens, W [N][K]: a lane is a token. The tokens are packed as panel[unit][token]; a weight unit
//                is one dword of the untouched tensor, broadcast. So weights are never repacked.
//   columns form W [K][N] (n dense): lanes run along N, token units are broadcast.
//
// Rows and lanes form ask for the weights of the next tile while they compute one: a row is too short, and rows are
// too far apart, for the hardware to see the pattern in time.
//
// Letters: t token of the block, n weight row, k element of K, u unit of K (see simd.hpp), P padded tokens.
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

template <class S> struct TileShape {
  static constexpr bool many_registers = simd_lanes(S::isa) == 16;  // 32 instead of 16 vector registers
  static constexpr int lanes_form_rows = 6;                         // weight rows per tile
  static constexpr int lanes_form_vectors = many_registers ? 4 : 2;  // token vectors per tile
  static constexpr int rows_form_rows = many_registers ? 4 : 2;
  static constexpr int rows_form_tokens = 4;
  static constexpr int columns_form_tokens = 6;
  static constexpr int columns_form_vectors = 2;
};

// Weights that are needed next, fetched line by line while others are multiplied.
struct Ahead {
  const uint8* at;
  int64 line_step;   // bytes from one line to the next of those fetched in one step
  int64 group_step;  // bytes from one step's first line to the next step's
};

template <int R, int N> struct RowsResult { Vec<float, N> token[R]; };

// rows form: token[r][n] = sum over k of a[r][k] * w[n][k] for num_n <= N rows; missing rows repeat the last one.
template <class W, class A, int R, int N>
inline RowsResult<R, N> rows_tile(const typename W::element* w, int64 w_stride, int num_n, Ahead ahead,
                                  const typename A::element* const (&a)[R], int64 k) {
  using floats = typename W::floats;
  floats acc[R * N];
  const typename W::element* row[N];
  const typename A::element* token[R];
#pragma unroll
  for (int r = 0; r < R; ++r) token[r] = a[r];
#pragma unroll
  for (int n = 0; n < N; ++n) row[n] = w + w_stride * (n < num_n ? n : num_n - 1);
#pragma unroll
  for (int i = 0; i < R * N; ++i) acc[i] = floats(0.0f);
  constexpr int step = W::lanes * W::k_per_unit;
  typename W::element w_tail[N][step];
  typename A::element a_tail[R][step];
  for (int64 at = 0; at < k; at += step) {
    if (at + step > k) {  // the last, partial step reads zero-padded copies
      for (int n = 0; n < N; ++n) {
        copy_tail(row[n], k - at, w_tail[n], step);
        row[n] = w_tail[n];
      }
      for (int r = 0; r < R; ++r) {
        copy_tail(token[r], k - at, a_tail[r], step);
        token[r] = a_tail[r];
      }
    }
    typename W::units weights[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      prefetch(ahead.at + n * ahead.line_step);
      weights[n] = W::load_whole(row[n]);
      row[n] += step;
    }
    ahead.at += ahead.group_step;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const auto tokens = A::load_whole(token[r]);
      token[r] += step;
#pragma unroll
      for (int n = 0; n < N; ++n) W::accumulate(acc[r * N + n], tokens, weights[n]);
    }
  }
  // Whole registers of accumulators are summed together.
  constexpr int together = R * N < W::lanes ? R * N : W::lanes;
  RowsResult<R, N> result;
#pragma unroll
  for (int i = 0; i < R * N; i += together) {
    const auto part = sum_lanes<W::lanes, together>(reinterpret_cast<floats(&)[together]>(acc[i]));
    __builtin_memcpy(reinterpret_cast<float*>(&result) + i, &part, sizeof(part));
  }
  return result;
}

// rows form over `num_matrices` matrices of num_n rows and num_tokens tokens: c[m][t * c_stride + n]. Weights that
// several passes need stay in the cache. Two or three tokens waste a part of the tile, which costs nothing: memory
// decides then.
template <class W, class A, int num_matrices>
inline void rows_form(const typename W::element* const (&w)[num_matrices], int64 w_stride, int num_n,
                      const typename A::element* const* a, int num_tokens, int64 k, float* const (&c)[num_matrices],
                      int c_stride) {
  constexpr int N = TileShape<W>::rows_form_rows;
  constexpr int T = TileShape<W>::rows_form_tokens;
  constexpr int64 step_bytes = W::lanes * W::k_per_unit * int64(sizeof(typename W::element));
  const bool dense = w_stride == k;  // then memory is read in storage order, which it is fastest at
  const auto pass = [&](auto rows, int m, int t0, int n0) {
    constexpr int R = decltype(rows)::value;
    const typename A::element* tokens[R];
#pragma unroll
    for (int r = 0; r < R; ++r) tokens[r] = a[t0 + r < num_tokens ? t0 + r : num_tokens - 1];
    // The next tile's weights, once: later passes over this tile ask for what they are reading anyway.
    const auto* soon = reinterpret_cast<const uint8*>(w[m] + (t0 == 0 ? n0 + N : n0) * w_stride);
    const Ahead ahead = dense ? Ahead{soon, step_bytes, N * step_bytes}
                              : Ahead{soon, w_stride * int64(sizeof(typename W::element)), step_bytes};
    const auto sums = rows_tile<W, A, R, N>(w[m] + n0 * w_stride, w_stride, num_n - n0, ahead, tokens, k);
    for (int r = 0; r < R && t0 + r < num_tokens; ++r) store(c[m] + (t0 + r) * c_stride + n0, sums.token[r]);
  };
  for (int m = 0; m < num_matrices; ++m)
    for (int n0 = 0; n0 < num_n; n0 += N) {
      if (num_tokens == 1) {
        pass(Int<1>{}, m, 0, n0);
      } else {
        for (int t0 = 0; t0 < num_tokens; t0 += T) pass(Int<T>{}, m, t0, n0);
      }
    }
}

// lanes form: c[n * c_stride + t] (+)= sum over u of panel[u][t] * w[n][u] for NR rows and TV vectors of tokens.
// Rows are addressed by bytes: those of an odd K are only 2-byte aligned. Weights `ahead` bytes further are prefetched.
template <class S, int NR, int TV>
inline void lanes_tile(const uint32* panel, int panel_stride, const uint8* const (&w)[NR], int64 ahead,
                       int64 num_units, float* c, int c_stride, bool accumulate) {
  using floats = typename S::floats;
  using units = typename S::units;
  constexpr int kLineUnits = 16;
  floats acc[NR][TV];
#pragma unroll
  for (int n = 0; n < NR; ++n)
#pragma unroll
    for (int v = 0; v < TV; ++v)
      acc[n][v] = accumulate ? load<floats>(c + n * c_stride + v * S::lanes) : floats(0.0f);
  for (int64 u = 0; u < num_units;) {
    if (ahead != 0)
#pragma unroll
      for (int n = 0; n < NR; ++n) prefetch(w[n] + u * 4 + ahead);
    const int64 line_end = u + kLineUnits < num_units ? u + kLineUnits : num_units;
#pragma clang loop unroll(disable)
    for (; u < line_end; ++u) {
      units tokens[TV];
#pragma unroll
      for (int v = 0; v < TV; ++v) tokens[v] = load<units>(panel + u * panel_stride + v * S::lanes);
#pragma unroll
      for (int n = 0; n < NR; ++n) {
        const units weight = units(load<uint32>(w[n] + u * 4));
#pragma unroll
        for (int v = 0; v < TV; ++v) S::accumulate(acc[n][v], tokens[v], weight);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < NR; ++n)
#pragma unroll
    for (int v = 0; v < TV; ++v) store(c + n * c_stride + v * S::lanes, acc[n][v]);
}

// One group of NR weight rows against all token vectors of the panel. padded is a multiple of two vectors.
template <class S, int NR>
inline void lanes_group(const uint32* panel, int padded, const uint8* const (&w)[NR], int64 ahead, int64 num_units,
                        float* c, int c_stride, bool accumulate) {
  constexpr int TV = TileShape<S>::lanes_form_vectors;
  for (int t = 0; t < padded;) {
    const int left = (padded - t) / S::lanes;
    if (left >= TV) {
      lanes_tile<S, NR, TV>(panel + t, padded, w, ahead, num_units, c + t, c_stride, accumulate);
      t += TV * S::lanes;
    } else if (left == 1) {
      lanes_tile<S, NR, 1>(panel + t, padded, w, ahead, num_units, c + t, c_stride, accumulate);
      t += S::lanes;
    } else if (TV > 3 && left == 3) {
      if constexpr (TV > 3) lanes_tile<S, NR, 3>(panel + t, padded, w, ahead, num_units, c + t, c_stride, accumulate);
      t += 3 * S::lanes;
    } else {
      if constexpr (TV > 2) lanes_tile<S, NR, 2>(panel + t, padded, w, ahead, num_units, c + t, c_stride, accumulate);
      t += 2 * S::lanes;
    }
    ahead = 0;  // asked for already
  }
}

// lanes form over num_n weight rows and units [u0, u0 + num_units) of K, whose panel is given: c[n * c_stride + t].
// Computes whole groups of rows: c has room for num_n rounded up to lanes_form_rows, and what lies past num_n is
// junk. `after` is the address of the weights that are needed next. `staged` has room for lanes_form_rows *
// (num_units rounded up to lanes) units: weights go through it where they need conversion, and where K is odd and the
// last pair is not all in memory.
template <class S>
[[gnu::noinline]] void lanes_form(const typename S::element* w, int64 w_stride, int num_n, const uint32* panel,
                                  int padded, int64 k, int64 u0, int64 num_units, const void* after, float* c,
                                  int c_stride, uint32* staged) {
  constexpr int NR = TileShape<S>::lanes_form_rows;
  const bool in_place = S::direct && (u0 + num_units) * S::k_per_unit <= k;
  const int64 stage_stride = align_up(num_units, S::lanes);
  for (int n0 = 0; n0 < num_n; n0 += NR) {
    const auto* first = reinterpret_cast<const uint8*>(w + n0 * w_stride + u0 * S::k_per_unit);
    const int64 ahead = n0 + NR < num_n ? NR * w_stride * int64(sizeof(*w)) : (const uint8*)after - first;
    const uint8* units[NR];
#pragma unroll
    for (int n = 0; n < NR; ++n) {
      const auto* row = w + (n0 + n < num_n ? n0 + n : num_n - 1) * w_stride;
      units[n] = reinterpret_cast<const uint8*>(row + u0 * S::k_per_unit);
    }
    if (!in_place) {
      for (int n = 0; n < NR; ++n) {
        const auto* row = w + (n0 + n < num_n ? n0 + n : num_n - 1) * w_stride;
        for (int64 u = 0; u < num_units; u += S::lanes) {
          prefetch(reinterpret_cast<const uint8*>(row + (u0 + u) * S::k_per_unit) + ahead);
          store(staged + n * stage_stride + u, S::load_units(row, u0 + u, k));
        }
        units[n] = reinterpret_cast<const uint8*>(staged + n * stage_stride);
      }
    }
    lanes_group<S, NR>(panel, padded, units, in_place ? ahead : 0, num_units, c + n0 * c_stride, c_stride, u0 > 0);
  }
}

// panel[u - u0][t] = unit u of token t for u in [u0, u0 + num_units), t < padded; `tokens` has `padded` entries.
// The panel has room for num_units rounded up to lanes.
template <class S>
inline void pack_panel(const typename S::element* const* tokens, int padded, int64 k, int64 u0, int64 num_units,
                       uint32* panel) {
  constexpr int step = S::lanes * S::k_per_unit;
  typename S::element tails[S::lanes][step];
  for (int t0 = 0; t0 < padded; t0 += S::lanes)
    for (int64 u = 0; u < num_units; u += S::lanes) {
      const int64 at = (u0 + u) * S::k_per_unit;
      const bool whole = at + step <= k;
      typename S::units block[S::lanes];
      if (!whole)
        for (int t = 0; t < S::lanes; ++t) copy_tail(tokens[t0 + t] + at, k - at, tails[t], step);
#pragma unroll
      for (int t = 0; t < S::lanes; ++t) block[t] = S::load_whole(whole ? tokens[t0 + t] + at : tails[t]);
      transpose<S::lanes>(block);
#pragma unroll
      for (int i = 0; i < S::lanes; ++i) store(panel + (u + i) * padded + t0, block[i]);
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

// columns form: c[t * c_stride + n] = sum over k of a[t][k] * w[k][n].
template <class W, class A>
inline void columns_form(const typename W::element* w, int64 w_stride, int num_n,
                         const typename A::element* const* a, int num_tokens, int64 k, float* c, int c_stride) {
  using floats = typename W::floats;
  constexpr int V = TileShape<W>::columns_form_vectors;
  const int64 num_units = ceil_div(k, W::k_per_unit);
  typename W::element copy[V][2][W::lanes];
  const auto pass = [&](auto tokens_in_tile, int t0, int n0) {
    constexpr int R = decltype(tokens_in_tile)::value;
    floats acc[R][V];
    const typename A::element* tokens[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      tokens[r] = a[t0 + r < num_tokens ? t0 + r : num_tokens - 1];
#pragma unroll
      for (int v = 0; v < V; ++v) acc[r][v] = floats(0.0f);
    }
    for (int64 u = 0; u < num_units; ++u) {
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
  constexpr int T = TileShape<W>::columns_form_tokens;
  for (int n0 = 0; n0 < num_n; n0 += V * W::lanes) {
    int t0 = 0;
    for (; t0 + 2 < num_tokens; t0 += T) pass(Int<T>{}, t0, n0);
    for (; t0 < num_tokens; ++t0) pass(Int<1>{}, t0, n0);
  }
}

}  // namespace jitmoe::cpu

// SPDX-License-Identifier: MIT
// The three inner loops of the CPU kernels. All compute C = A W^T for some tokens of one expert, in fp32.
//
//   rows form    few tokens, W [N][K] (k dense): lanes run along K, so each weight is read once, in storage order, at
//                memory speed; lanes are summed at the end.
//   lanes form   many tokens, W [N][K]: a lane is a token. The tokens are packed as panel[unit][token]; a weight unit
//                is one dword of the untouched tensor, broadcast. So weights are never repacked.
//   columns form W [K][N] (n dense): lanes run along N, token units are broadcast.
//
// Letters: t token of the block, n weight row, k element of K, u unit of K (see simd.hpp), P padded tokens.
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

constexpr int kMaxBlockTokens = 64;  // tokens of one expert that a work-item handles together
constexpr int kRowsFormTokens = 8;   // at most so many tokens use the rows form: half of a lanes-form tile's work

template <class S> struct TileShape {
  static constexpr bool many_registers = simd_lanes(S::isa) == 16;  // 32 instead of 16 vector registers
  static constexpr int lanes_form_rows = 6;                         // weight rows per tile
  static constexpr int lanes_form_vectors = many_registers ? 4 : 2;  // token vectors per tile
  static constexpr int rows_form_rows = many_registers ? 4 : 2;
  static constexpr int columns_form_tokens = 6;
  static constexpr int columns_form_vectors = 2;
};

// rows form: out[r][n] = sum over k of a[r][k] * w[n][k] for num_n <= N rows; missing rows repeat the last one.
template <class W, class A, int R, int N>
inline void rows_tile(const typename W::element* w, int64 w_stride, int num_n, const typename A::element* const (&a)[R],
                      int64 k, float (&out)[R][N]) {
  using floats = typename W::floats;
  floats acc[R][N];
  const typename W::element* row[N];
  const typename A::element* token[R];
#pragma unroll
  for (int r = 0; r < R; ++r) token[r] = a[r];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    row[n] = w + w_stride * (n < num_n ? n : num_n - 1);
#pragma unroll
    for (int r = 0; r < R; ++r) acc[r][n] = floats(0.0f);
  }
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
      weights[n] = W::load_whole(row[n]);
      row[n] += step;
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const auto tokens = A::load_whole(token[r]);
      token[r] += step;
#pragma unroll
      for (int n = 0; n < N; ++n) W::accumulate(acc[r][n], tokens, weights[n]);
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int n = 0; n < N; ++n) out[r][n] = sum<W::lanes>(acc[r][n]);
}

// rows form over num_n weight rows and num_tokens <= kRowsFormTokens: c[t * c_stride + n]. Weights that several
// passes need stay in the L1 cache between them.
template <class W, class A>
inline void rows_form(const typename W::element* w, int64 w_stride, int num_n, const typename A::element* const* a,
                      int num_tokens, int64 k, float* c, int c_stride) {
  constexpr int N = TileShape<W>::rows_form_rows;
  const auto pass = [&](auto rows, int t0, int n0) {
    constexpr int R = decltype(rows)::value;
    const typename A::element* tokens[R];
#pragma unroll
    for (int r = 0; r < R; ++r) tokens[r] = a[t0 + r < num_tokens ? t0 + r : num_tokens - 1];
    float out[R][N];
    const int left = num_n - n0;
    rows_tile<W, A, R, N>(w + int64(n0) * w_stride, w_stride, left, tokens, k, out);
    for (int r = 0; r < R && t0 + r < num_tokens; ++r)
      for (int n = 0; n < N && n < left; ++n) c[(t0 + r) * c_stride + n0 + n] = out[r][n];
  };
  for (int n0 = 0; n0 < num_n; n0 += N) {
    if (num_tokens == 1) {
      pass(Int<1>{}, 0, n0);
    } else if (num_tokens == 2) {
      pass(Int<2>{}, 0, n0);
    } else {
      for (int t0 = 0; t0 < num_tokens; t0 += 4) pass(Int<4>{}, t0, n0);
    }
  }
}

// lanes form: c[n * c_stride + t] (+)= sum over u of panel[u][t] * w[n][u] for NR rows and TV vectors of tokens.
// Rows are addressed by bytes: those of an odd K are only 2-byte aligned.
template <class S, int NR, int TV>
inline void lanes_tile(const uint32* panel, int panel_stride, const uint8* const (&w)[NR], int64 num_units, float* c,
                       int c_stride, bool accumulate) {
  using floats = typename S::floats;
  using units = typename S::units;
  floats acc[NR][TV];
#pragma unroll
  for (int n = 0; n < NR; ++n)
#pragma unroll
    for (int v = 0; v < TV; ++v)
      acc[n][v] = accumulate ? load<floats>(c + n * c_stride + v * S::lanes) : floats(0.0f);
  for (int64 u = 0; u < num_units; ++u) {
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
#pragma unroll
  for (int n = 0; n < NR; ++n)
#pragma unroll
    for (int v = 0; v < TV; ++v) store(c + n * c_stride + v * S::lanes, acc[n][v]);
}

// One group of NR weight rows against all token vectors of the panel. A single row takes one vector at a time: it is
// what is left of a range, and variants cost compile time.
template <class S, int NR>
inline void lanes_group(const uint32* panel, int padded, const uint8* const (&w)[NR], int64 num_units, float* c,
                        int c_stride, bool accumulate) {
  constexpr int TV = NR == 1 ? 1 : TileShape<S>::lanes_form_vectors;
  int t = 0;
  for (; t + TV * S::lanes <= padded; t += TV * S::lanes)
    lanes_tile<S, NR, TV>(panel + t, padded, w, num_units, c + t, c_stride, accumulate);
  const int left = (padded - t) / S::lanes;
  if constexpr (TV > 3)
    if (left == 3) lanes_tile<S, NR, 3>(panel + t, padded, w, num_units, c + t, c_stride, accumulate);
  if constexpr (TV > 2)
    if (left == 2) lanes_tile<S, NR, 2>(panel + t, padded, w, num_units, c + t, c_stride, accumulate);
  if constexpr (TV > 1)
    if (left == 1) lanes_tile<S, NR, 1>(panel + t, padded, w, num_units, c + t, c_stride, accumulate);
}

// lanes form over num_n weight rows and units [u0, u0 + num_units) of K, whose panel is given: c[n * c_stride + t].
// `staged` has room for lanes_form_rows * (num_units rounded up to lanes) units: weights go through it where they
// need conversion, and where K is odd and the last pair is not all in memory.
template <class S>
inline void lanes_form(const typename S::element* w, int64 w_stride, int num_n, const uint32* panel, int padded,
                       int64 k, int64 u0, int64 num_units, float* c, int c_stride, uint32* staged) {
  constexpr int kRows = TileShape<S>::lanes_form_rows;
  const bool in_place = S::direct && (u0 + num_units) * S::k_per_unit <= k;
  const int64 stage_stride = align_up(num_units, S::lanes);
  const auto group = [&](auto rows, int n0) {
    constexpr int NR = decltype(rows)::value;
    const uint8* units[NR];
    for (int n = 0; n < NR; ++n) {
      const auto* row = w + int64(n0 + n) * w_stride;
      units[n] = reinterpret_cast<const uint8*>(row + u0 * S::k_per_unit);
      if (in_place) continue;
      for (int64 u = 0; u < num_units; u += S::lanes)
        store(staged + n * stage_stride + u, S::load_units(row, u0 + u, k));
      units[n] = reinterpret_cast<const uint8*>(staged + n * stage_stride);
    }
    lanes_group<S, NR>(panel, padded, units, num_units, c + n0 * c_stride, c_stride, u0 > 0);
  };
  int n0 = 0;
  for (; n0 + kRows <= num_n; n0 += kRows) group(Int<kRows>{}, n0);
  for (; n0 < num_n; ++n0) group(Int<1>{}, n0);
}

// panel[u - u0][t] = unit u of token t for u in [u0, u0 + num_units); tokens past num_tokens are zero.
// The panel has room for num_units rounded up to lanes.
template <class S>
inline void pack_panel(const typename S::element* const* tokens, int num_tokens, int padded, int64 k, int64 u0,
                       int64 num_units, uint32* panel) {
  for (int t0 = 0; t0 < padded; t0 += S::lanes)
    for (int64 u = 0; u < num_units; u += S::lanes) {
      typename S::units block[S::lanes];
#pragma unroll
      for (int t = 0; t < S::lanes; ++t)
        block[t] = t0 + t < num_tokens ? S::load_units(tokens[t0 + t], u0 + u, k) : typename S::units(0u);
      transpose<S::lanes>(block);
#pragma unroll
      for (int i = 0; i < S::lanes; ++i) store(panel + (u + i) * padded + t0, block[i]);
    }
}

// lanes weight columns n .. n+lanes-1 of unit u of W [K][N] storage; columns past num_n are zero.
template <class S>
inline typename S::units load_columns(const typename S::element* w, int64 w_stride, int64 u, int64 k, int n, int num_n) {
  using element = typename S::element;
  element copy[2][S::lanes];
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
      for (int v = 0; v < V; ++v) weights[v] = load_columns<W>(w, w_stride, u, k, n0 + v * W::lanes, num_n);
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

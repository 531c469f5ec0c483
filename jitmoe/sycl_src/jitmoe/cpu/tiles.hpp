// SPDX-License-Identifier: MIT
// The two inner loops of the CPU kernels. Both compute C = A W^T for some tokens of one expert, in fp32.
//
//   rows form    few tokens, W [N][K] (k dense): lanes run along K, so each weight is read once, in storage order, at
//                memory speed; lanes are summed at the end.
//   panel form   otherwise: lanes run along N. 32 weight rows (16, 8 on smaller registers) are brought into a panel
//                [unit][column] in the L1 cache, by a transposition in registers or as they are (W [K][N]), and every
//                token of the block is multiplied with it. That costs as much as 4 more tokens. Converting a weight
//                format happens on the way into the panel. The next panel's weights are prefetched meanwhile.
//
// Letters: t token of the block, n weight row, k element of K, u unit of K (see simd.hpp).
#pragma once

#include <jitmoe/cpu/simd.hpp>

namespace jitmoe::cpu {

constexpr int kMaxBlockTokens = 96;  // tokens of one expert that a work-item handles together
constexpr int kRowsFormTokens = 8;   // at most so many tokens use the rows form
constexpr int kPanelUnits = 256;     // units of K in one panel
constexpr int kTokenStride = kPanelUnits + 16;  // units; no power of two, which would put all rows in one cache set

template <class S> struct TileShape {
  static constexpr bool many_registers = simd_lanes(S::isa) == 16;  // 32 instead of 16 vector registers
  static constexpr int rows_form_rows = many_registers ? 4 : 2;
  static constexpr int panel_vectors = 2;  // weight vectors per tile
  static constexpr int panel_rows = S::isa == CpuIsa::generic ? 4 : many_registers ? 12 : 6;  // tokens per tile
  // The smallest tile of a near-equal split of more than kRowsFormTokens tokens into even parts.
  static constexpr int panel_least_rows = panel_rows == 12 ? 6 : panel_rows == 6 ? 4 : 2;
};

// Weights that will be needed soon, fetched line by line while others are being multiplied.
struct Ahead {
  const uint8* at;
  int64 line_step;   // bytes from one line of a group to the next
  int64 group_step;  // bytes from one group of lines to the next
};

// rows form: out[r][n] = sum over k of a[r][k] * w[n][k] for num_n <= N rows; missing rows repeat the last one.
template <class W, class A, int R, int N>
inline void rows_tile(const typename W::element* w, int64 w_stride, int num_n, const typename A::element* const (&a)[R],
                      int64 k, Ahead ahead, float (&out)[R][N]) {
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
    // The next tile's weights: in storage order where rows lie close together, or else row by row.
    const int64 stride_bytes = w_stride * int64(sizeof(typename W::element));
    const auto* soon = reinterpret_cast<const uint8*>(w + (n0 + N) * w_stride);
    const Ahead ahead = w_stride == k ? Ahead{soon, 64, N * 64} : Ahead{soon, stride_bytes, 64};
    float out[R][N];
    const int left = num_n - n0;
    rows_tile<W, A, R, N>(w + int64(n0) * w_stride, w_stride, left, tokens, k, ahead, out);
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

// What the panel form works on: a block of tokens in units, and one panel of weights, both for kPanelUnits of K.
template <class S> struct PanelScratch {
  static constexpr int columns = TileShape<S>::panel_vectors * S::lanes;
  uint32 tokens[kMaxBlockTokens * kTokenStride];  // [token][unit]
  uint32 panel[kPanelUnits * columns];            // [unit][column]
};

// A range of weight rows n (of W [N][K], or columns of W [K][N]) of one expert.
template <class S> struct WeightRange {
  const typename S::element* base;  // of the range's first row
  int64 stride;                     // between rows (nk) or columns (kn)
  int num_n;
};

// packed[t][u - u0] = unit u of token t for u in [u0, u0 + num_units), zero past K. What lies ahead_units behind each
// unit is fetched: it will be packed next.
template <class A>
inline void pack_tokens(const typename A::element* const* tokens, int num_tokens, int64 k, int64 u0, int num_units,
                        int64 ahead_units, uint32* packed) {
  for (int t = 0; t < num_tokens; ++t)
    for (int u = 0; u < num_units; u += A::lanes) {
      prefetch(tokens[t] + (u0 + u + ahead_units) * A::k_per_unit);
      store(packed + t * kTokenStride + u, A::load_units(tokens[t], u0 + u, k));
    }
}

// lanes weight columns n .. n+lanes-1 of unit u of W [K][N] storage; columns past num_n are zero.
template <class S>
inline typename S::units load_columns(const typename S::element* w, int64 w_stride, int64 u, int64 k, int n,
                                      int num_n) {
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

// panel[u - u0][c] = unit u of weight row n + c, zero past K. Columns past num_n hold what is never used.
// ahead_bytes > 0 fetches what lies so far behind each line that is read.
template <class S, Layout layout>
inline void pack_weights(const WeightRange<S>& w, int n, int64 k, int64 u0, int num_units, uint32* panel,
                         int64 ahead_bytes) {
  constexpr int columns = PanelScratch<S>::columns;
  if constexpr (layout == Layout::nk) {
    for (int v = 0; v < columns; v += S::lanes) {
      if (n + v >= w.num_n) break;
      const typename S::element* rows[S::lanes];
#pragma unroll
      for (int l = 0; l < S::lanes; ++l) {
        const int row = n + v + l;
        rows[l] = w.base + w.stride * (row < w.num_n ? row : w.num_n - 1);
      }
      for (int u = 0; u < num_units; u += S::lanes) {
        typename S::units block[S::lanes];
        if ((u0 + u + S::lanes) * S::k_per_unit <= k) {
#pragma unroll
          for (int l = 0; l < S::lanes; ++l) {
            const auto* from = rows[l] + (u0 + u) * S::k_per_unit;
            if (ahead_bytes != 0) prefetch(reinterpret_cast<const uint8*>(from) + ahead_bytes);
            block[l] = S::load_whole(from);
          }
        } else {
          for (int l = 0; l < S::lanes; ++l) block[l] = S::load_units(rows[l], u0 + u, k);
        }
        transpose<S::lanes>(block);
#pragma unroll
        for (int i = 0; i < S::lanes; ++i) store(panel + (u + i) * columns + v, block[i]);
      }
    }
  } else {
    for (int u = 0; u < num_units; ++u)
      for (int v = 0; v < columns; v += S::lanes)
        store(panel + u * columns + v, load_columns<S>(w.base, w.stride, u0 + u, k, n + v, w.num_n));
  }
}

// c[r][n] (+)= sum over u of tokens[r][u] * panel[u][n] for R tokens and one panel.
template <class S, int R>
inline void panel_tile(const uint32* tokens, const uint32* panel, int num_units, float* c, int c_stride,
                       bool accumulate, Ahead& ahead) {
  using floats = typename S::floats;
  using units = typename S::units;
  constexpr int V = TileShape<S>::panel_vectors;
  floats acc[R][V];
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int v = 0; v < V; ++v)
      acc[r][v] = accumulate ? load<floats>(c + r * c_stride + v * S::lanes) : floats(0.0f);
  for (int group = 0; group < num_units; group += 16) {
    const int end = group + 16 < num_units ? group + 16 : num_units;
    const uint8* line = ahead.at;
    ahead.at += ahead.group_step;
    for (int u = group; u < end; ++u) {
      prefetch(line);
      line += ahead.line_step;
      units weights[V];
#pragma unroll
      for (int v = 0; v < V; ++v) weights[v] = load<units>(panel + (u * V + v) * S::lanes);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const units token = units(tokens[r * kTokenStride + u]);
#pragma unroll
        for (int v = 0; v < V; ++v) S::accumulate(acc[r][v], weights[v], token);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int v = 0; v < V; ++v) store(c + r * c_stride + v * S::lanes, acc[r][v]);
}

// Calls visit(Int<R>{}) for the even R == rows in [low, high].
template <int low, int high, class Visit> inline void with_rows(int rows, Visit visit) {
  if constexpr (low >= high) {
    visit(Int<high>{});
  } else if (rows == high) {
    visit(Int<high>{});
  } else {
    with_rows<low, high - 2>(rows, visit);
  }
}

// panel form over one range of weights and units [u0, u0 + num_units) of K, whose tokens are packed:
// c[t * c_stride + n] for n up to num_n rounded up to whole panels. `next` is the range that will be multiplied next.
// Tokens are split into tiles of nearly equal, even size (each size is more code to build); an odd last token has a
// neighbour that nobody reads: c has an even number of rows.
template <class S, Layout layout>
inline void panel_form(const WeightRange<S>& w, const WeightRange<S>& next, int num_tokens, int64 k, int64 u0,
                       int num_units, float* c, int c_stride, PanelScratch<S>* s) {
  constexpr int columns = PanelScratch<S>::columns;
  constexpr int kMostRows = TileShape<S>::panel_rows;
  // More than kRowsFormTokens tokens never need smaller tiles; W [K][N] has no other form for fewer.
  constexpr int kLeastRows = layout == Layout::nk ? TileShape<S>::panel_least_rows : 2;
  const int num_couples = (num_tokens + 1) / 2;
  const int tiles = (2 * num_couples + kMostRows - 1) / kMostRows;
  const bool few = tiles < 5;  // too little time between two panels to fetch line by line (measured)
  for (int n = 0; n < w.num_n; n += columns) {
    const bool is_last = n + columns >= w.num_n;
    const auto* soon = is_last ? next.base : w.base + (n + columns) * (layout == Layout::nk ? w.stride : 1);
    const int64 stride_bytes = (is_last ? next.stride : w.stride) * int64(sizeof(typename S::element));
    Ahead ahead = layout == Layout::nk
                      ? Ahead{(const uint8*)(soon + u0 * S::k_per_unit), 64, stride_bytes}
                      : Ahead{(const uint8*)soon + u0 * S::k_per_unit * stride_bytes, stride_bytes, 16 * stride_bytes};
    const auto* here = w.base + n * (layout == Layout::nk ? w.stride : 1);
    pack_weights<S, layout>(w, n, k, u0, num_units, s->panel,
                            few ? (const uint8*)soon - (const uint8*)here : int64(0));
    int t = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      const int rows = 2 * (num_couples / tiles + (tile < num_couples % tiles));
      with_rows<kLeastRows, kMostRows>(rows, [&](auto count) {
        panel_tile<S, decltype(count)::value>(s->tokens + t * kTokenStride, s->panel, num_units, c + t * c_stride + n,
                                              c_stride, u0 > 0, ahead);
      });
      t += rows;
    }
  }
}

}  // namespace jitmoe::cpu

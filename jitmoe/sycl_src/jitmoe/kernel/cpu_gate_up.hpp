// SPDX-License-Identifier: MIT
// First GEMM of the MoE layer with its activation, on CPUs:
//
//   sum[p][n]   = sum_h x[t(p)][h] * w1[e][n][h]              (times topk_weights[p] if weight_on_input)
//   inter[p][i] = round(act(sum[p][gate(i)] + w1_bias[e][gate(i)]) * (sum[p][up(i)] + w1_bias[e][up(i)]))
//
// for all pairs p of one expert e and a range of rows i. Config::gate_up says which rows of w1 are gate(i) and up(i);
// ungated: act(sum[p][i] + w1_bias[e][i]). epilogue/activation.hpp has the activations and their limit.
//
// | tensor        | shape                | dtype          | layout, owner
// | hidden_states | [M][H]               | dtype          | row stride x_row_stride, dense rows; caller's
// | w1            | [E][2I][H]           | dtype          | expert stride, and w1_stride between rows (nk) or between
// |               |                      |                | columns of the dense dimension (kn); caller's
// | w1_up         | [E][I][H]            | dtype          | strides of w1; if separate (w1 is [E][I][H] then); caller's
// |               | [E][2I][bytes of H]  | codes          | if quantized: strides in bytes (cpu/codes.hpp)
// | w1_scale, w1_zero_point              | scale_dtype, uint8 | if quantized; [E][blocks of n][blocks of k]; caller's
// | x_rows        | [M or slots][H]      | x_dtype        | read instead of hidden_states if x_prepared; workspace, made
// | x_scale, x_correction                |                | by cpu_rows with the scales of quantized inputs
// | w1_bias       | [E][rows of w1, w1_up] | bias_dtype   | dense; if has_bias; caller's
// | topk_weights  | [M][k]               | weights_dtype  | row stride; read if weight_on_input; caller's
// | topk_ids, expert_map                 |                | read if few_pairs; caller's
// | sorted_pairs, groups                 |                | read otherwise; workspace, from route_serial
// | inter         | [slots][I]           | units          | workspace, layout of cpu/routing.hpp; rows of fp32 if
// |               |                      |                | inter_is_fp32 (they will be quantized)
//
// nd_range: (max_groups * num_ranges), work-groups of 1 work-item; ranges of n_block rows of one group are neighbours,
// so that a core's work-items are one stream of weights.
// Local memory: two result tiles [kMaxRows][64] fp32, the token panel [kPanelUnits][64], staged weights.
// Numerics: fp32 accumulation in a fixed order (int32 within a block if x_dtype is int8); scales multiply sums in fp32;
// activation and product in fp32; rounded once to dtype (not at all if inter_is_fp32).
#pragma once

#include <jitmoe/cpu/chunk_rows.hpp>
#include <jitmoe/cpu/halves.hpp>
#include <jitmoe/cpu/routing.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/cpu/tiles.hpp>
#include <jitmoe/entry.hpp>
#include <jitmoe/epilogue/activation.hpp>
#include <jitmoe/epilogue/affine.hpp>

namespace jitmoe::kernel {

struct CpuGateUpArgs {
  const void* hidden_states;
  const void* w1;
  const void* w1_up;
  const void* w1_bias;
  const void* topk_weights;
  const void* topk_ids;
  const void* expert_map;
  const void* sorted_pairs;
  const void* groups;
  void* inter;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 hidden_size;
  int32 intermediate_size;
  int32 n_block;  // rows of one range: a multiple of 16, at most kMaxRows
  int32 num_ranges;
  int64 x_row_stride;
  int64 w1_expert_stride;
  int64 w1_stride;
  int64 topk_ids_row_stride;
  int64 topk_weights_row_stride;
  float swiglu_alpha;
  float swiglu_limit;  // infinity: none
  // Quantized weights and inputs only (cpu/scales.hpp).
  const void* w1_scale = nullptr;
  const void* w1_zero_point = nullptr;
  int64 w1_scale_expert_stride = 0;
  int64 w1_scale_n_stride = 0;
  int64 w1_scale_k_stride = 0;
  int64 w1_zero_expert_stride = 0;
  int64 w1_zero_n_stride = 0;
  int64 w1_zero_k_stride = 0;
  int32 w1_block_n = 0;
  const void* x_rows = nullptr;        // [rows][x_rows_stride] x_dtype
  const void* x_scale = nullptr;       // [rows][blocks of input_block_k]
  const void* x_correction = nullptr;  // [rows][blocks of block_k]
  int64 x_rows_stride = 0;
};

namespace gate_up {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

constexpr int kMaxRows = 96;      // per range; plan/cpu.py names the same number
constexpr int kPanelUnits = 512;  // units of K packed at a time: 128 KiB, streamed from the L2 cache

struct Scratch {
  float tiles[2][kMaxRows * kMaxBlockTokens];  // gate and up; one tile of twice the rows if they are interleaved
  uint32 panel[kPanelUnits * kMaxBlockTokens];
  uint32 staged[8 * kPanelUnits];
  float block_scales[kMaxBlockTokens];
  float chunk_scales[kChunkTokens][kPreparedScales];
  epilogue::Affine<2 * kMaxRows, kMaxBlockTokens> affine;
};
static_assert(kPanelUnits * kMaxBlockTokens >= kChunkTokens * kPreparedUnits, "the panel holds prepared inputs too");

// Splits g0 u0 g1 u1 ... into gates and ups.
template <class V, int... l> inline void split_pairs(const float* from, V& gate, V& up, Sequence<int, l...>) {
  const V low = load<V>(from), high = load<V>(from + sizeof...(l));
  gate = __builtin_shufflevector(low, high, (2 * l)...);
  up = __builtin_shufflevector(low, high, (2 * l + 1)...);
}

// to[i] = act(gate[i]) * up[i] over `count` floats (a multiple of the vector length); up is not read without a gate.
template <class S, class Config>
inline void activate_span(const float* gate, const float* up, int count, epilogue::ActivationNumbers numbers, float* to) {
  for (int i = 0; i < count; i += S::lanes) {
    const auto g = load<typename S::floats>(gate + i);
    if constexpr (Halves<Config::gate_up>::gated)
      store(to + i, epilogue::activate_gated<Config::activation, S::lanes>(g, load<typename S::floats>(up + i), numbers));
    else
      store(to + i, epilogue::activate_ungated<Config::activation, S::lanes>(g, numbers));
  }
}

// The intermediate of one block, in place of the gates: [rows][padded] (lanes form) or [tokens][to_stride].
// Not inlined, like transpose_tile: the CPU device's compiler (2026.2) fused the loops of both wrongly where gate and up
// rows are interleaved.
template <class S, class Config>
[[gnu::noinline]] void activate_tile(float (&tiles)[2][kMaxRows * kMaxBlockTokens], bool lanes_are_tokens, int rows, int tokens,
                          int padded, int from_stride, int to_stride, epilogue::ActivationNumbers numbers) {
  float* const to = tiles[0];
  if constexpr (!Halves<Config::gate_up>::interleaved) {
    activate_span<S, Config>(tiles[0], tiles[1], lanes_are_tokens ? rows * padded : tokens * to_stride, numbers, to);
  } else if (lanes_are_tokens) {
    for (int i = 0; i < rows; ++i)
      activate_span<S, Config>(to + 2 * i * padded, to + (2 * i + 1) * padded, padded, numbers, to + i * padded);
  } else {
    for (int t = 0; t < tokens; ++t)
      for (int i = 0; i < rows; i += S::lanes) {
        typename S::floats gate, up;
        split_pairs(to + t * from_stride + 2 * i, gate, up, __make_integer_seq<Sequence, int, S::lanes>{});
        store(to + t * to_stride + i, epilogue::activate_gated<Config::activation, S::lanes>(gate, up, numbers));
      }
  }
}

// Stores tile[i][padded] as units first_unit.. of a panel; the last unit of an odd number of rows ends in zero.
template <class S>
inline void store_panel(const float* tile, int rows, int padded, uint32* panel, int64 panel_units, int64 first_unit) {
  for (int i = 0; i < rows; i += S::k_per_unit)
    for (int t = 0; t < padded; t += S::lanes) {
      const auto value = load<typename S::floats>(tile + i * padded + t);
      typename S::units unit;
      if constexpr (S::pairs) {
        unit = bf16_bits<S::lanes>(value);
        if (i + 1 < rows) unit |= bf16_bits<S::lanes>(load<typename S::floats>(tile + (i + 1) * padded + t)) << 16;
      } else {
        unit = bit_cast<typename S::units>(round_to<S::dtype, S::lanes>(value));
      }
      store(panel + Panel<S>::at(padded, panel_units, t, first_unit + i / S::k_per_unit), unit);
    }
}

// Stores tile[t][stride] as rows of `row_units` units; whole vectors, so up to lanes - 1 junk elements follow a range.
template <class S>
inline void store_rows(const float* tile, int tokens, int rows, int stride, uint32* inter, int64 row_units) {
  for (int t = 0; t < tokens; ++t)
    for (int i = 0; i < rows; i += S::lanes) {
      const auto value = load<typename S::floats>(tile + t * stride + i);
      if constexpr (S::pairs)
        store_floats<DType::bf16, S::lanes>(reinterpret_cast<uint16*>(inter + t * row_units) + i, value);
      else
        store(inter + t * row_units + i, round_to<S::dtype, S::lanes>(value));
    }
}

// Exchanges the dimensions of a tile, for weights whose two layouts differ: to[c * to_stride + r] = from[r][c].
[[gnu::noinline]] inline void transpose_tile(const float* from, int num_rows, int from_stride, int num_columns,
                                             float* to, int to_stride) {
  for (int r = 0; r < num_rows; ++r)
#pragma clang loop unroll(disable)
    for (int c = 0; c < num_columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
}

// Range `item` of num_groups * num_ranges; `next_item` is what the thread does after it, if there are so many.
template <class Config>
inline void gate_up_item(const CpuGateUpArgs& args, const Routing& routing, int32 item, int32 next_item, Scratch* s) {
  using G = Gemm<Config>;
  using B = BlocksOf<Config>;
  using X = typename G::Lanes;
  using S = Simd<Config::isa, Config::inter_dtype>;
  using H = Halves<Config::gate_up>;
  using Rows = typename G::Rows;
  (void)Config::bias_dtype, (void)Config::weights_dtype, (void)Config::x_by_slot;
  (void)Config::scale_dtype, (void)Config::has_zero_point, (void)Config::x_scaled;  // not always read

  // Indices.
  const Group group = routing.groups[item / args.num_ranges];
  const int32 i0 = item % args.num_ranges * args.n_block;
  const int32 left = args.intermediate_size - i0;
  const int32 rows = left < args.n_block ? left : args.n_block;
  const int32 matrix_rows = H::rows_per_i * rows;
  const int64 hidden = args.hidden_size;

  // Tensors.
  constexpr int64 element_bytes = Config::quantized ? 1 : num_bytes(Config::dtype);  // strides of codes count bytes
  const int64 w_stride = args.w1_stride * element_bytes;
  const int64 to_row = Config::w1_layout == Layout::nk ? w_stride : element_bytes;
  const uint8* matrices[H::matrices];
  float* tiles[H::matrices];
  B blocks[H::matrices];
  for (int m = 0; m < H::matrices; ++m) {
    matrices[m] = H::template block<uint8>(args.w1, args.w1_up, group.expert * args.w1_expert_stride * element_bytes,
                                           to_row, m, i0, args.intermediate_size);
    if constexpr (Config::quantized)
      blocks[m].weights = first_scales<Config>(args, group.expert, H::row(m, i0, args.intermediate_size));
    tiles[m] = s->tiles[m];
  }
  constexpr bool scales_rows = Config::quantized && B::block_k == 0;
  constexpr bool scales_tokens = Config::x_scaled && !B::input_blocks;
  constexpr bool is_affine = Config::has_bias || Config::weight_on_input || scales_rows || scales_tokens;
  if constexpr (is_affine) {
    epilogue::fill(1.0f, 2 * kMaxRows, s->affine.row_scale);
    epilogue::fill(0.0f, 2 * kMaxRows, s->affine.bias);
    epilogue::fill(1.0f, kMaxBlockTokens, s->affine.token_scale);
    if constexpr (scales_rows)
      for (int m = 0; m < H::matrices; ++m)
        for (int n = 0; n < matrix_rows; ++n)
          blocks[m].template read<typename G::template Weights<X>>(n, 0, 1, s->affine.row_scale + m * kMaxRows + n,
                                                                   nullptr);
    if constexpr (Config::has_bias)
      for (int m = 0; m < H::matrices; ++m)
        epilogue::copy_floats<Config::bias_dtype>(
            args.w1_bias,
            group.expert * H::all_rows(args.intermediate_size) + H::row(m, i0, args.intermediate_size), matrix_rows,
            s->affine.bias + m * kMaxRows);
  }
  // What is read next; after the last item the first one's again.
  const int32 next_group = next_item / args.num_ranges < routing.num_groups ? next_item / args.num_ranges : 0;
  const uint8* const next = H::template block<uint8>(
      args.w1, args.w1_up, routing.groups[next_group].expert * args.w1_expert_stride * element_bytes, to_row, 0,
      next_item % args.num_ranges * args.n_block, args.intermediate_size);
  const int64 units_per_token = inter_units<S>(args.intermediate_size);
  const int32 first_unit = i0 / S::k_per_unit;

  const auto row_of = [&](int32 at) {  // of the group's input rows
    const int64 token = routing.pairs[group.first + at] / args.top_k;
    if constexpr (Config::x_prepared)
      return static_cast<const uint8*>(args.x_rows) +
             (Config::x_by_slot ? group.slot + at : token) * args.x_rows_stride * num_bytes(Config::x_dtype);
    else
      return static_cast<const uint8*>(args.hidden_states) + token * args.x_row_stride * num_bytes(Config::dtype);
  };

  for (int32 done = 0; done < group.tokens;) {
    const int num_tokens = block_tokens(group.tokens - done);
    const int padded = padded_tokens(num_tokens);
    const int row_stride = int(align_up(rows, 16));
    const int tile_stride = int(align_up(matrix_rows, 16));
    const int32* pairs = routing.pairs + group.first + done;
    const uint8* tokens[kMaxBlockTokens];
    TokenScales scales[kMaxBlockTokens];
    for (int t = 0; t < padded; ++t) {  // padding repeats the last token: its results are never read
      const int t_there = t < num_tokens ? t : num_tokens - 1;
      const int32 pair = pairs[t_there];
      const int64 token = pair / args.top_k;
      float scale = 1.0f;
      tokens[t] = row_of(done + t_there);
      if constexpr (Config::x_prepared) {
        const int64 row = Config::x_by_slot ? group.slot + done + t_there : token;
        scales[t] = token_scales<B>({args.x_scale, args.x_correction}, row, hidden);
        if constexpr (scales_tokens) scale = static_cast<const float*>(args.x_scale)[row];
      }
      if constexpr (Config::weight_on_input)
        scale *= to_float<Config::weights_dtype>(
            static_cast<const element_t<Config::weights_dtype>*>(
                args.topk_weights)[token * args.topk_weights_row_stride + pair % args.top_k]);
      if constexpr (is_affine) s->affine.token_scale[t] = scale;
    }

    // GEMM: each matrix as [its rows][padded] (lanes form) or [tokens][tile_stride].
    const bool lanes_are_tokens = uses_lanes_form<Config, Config::w1_layout>(num_tokens);
    if constexpr (Config::w1_layout == Layout::kn) {
      for (int m = 0; m < H::matrices; ++m)
        columns_form<X, X>(reinterpret_cast<const typename X::element*>(matrices[m]), args.w1_stride, matrix_rows, tokens,
                           num_tokens, hidden, tiles[m], tile_stride);
    } else {
      if constexpr (!Config::few_pairs)
        if (lanes_are_tokens) {
          const int64 num_units = ceil_div(hidden, X::k_per_unit);
          for (int64 u0 = 0; u0 < num_units;) {
            const int64 units = chunk_units<X, B>(u0, num_units, kPanelUnits);
            LanesScales lanes_scales;
            if constexpr (B::input_blocks)
              lanes_scales = gather_scales<B>(scales, padded, u0 * X::k_per_unit / B::block_k, s->block_scales);
            pack_panel<X>(tokens, padded, hidden, u0, units, s->panel, kPanelUnits);
            // Next are the same tokens, or the next block; the next work-item begins with the first one again.
            const bool is_last = u0 + units == num_units;
            const int32 from = done + num_tokens < group.tokens ? done + num_tokens : 0;
            const int num_soon = is_last ? block_tokens(group.tokens - from) : num_tokens;
            const uint8* next_tokens[kMaxBlockTokens];
            if (is_last)
              for (int t = 0; t < num_soon; ++t) next_tokens[t] = row_of(from + t);
            constexpr int64 unit_bytes = X::k_per_unit * num_bytes(Config::x_dtype);
            SoonTokens soon(is_last ? next_tokens : tokens, num_soon, is_last ? 0 : (u0 + units) * unit_bytes,
                            units * unit_bytes, H::matrices * lanes_fetches<X>(matrix_rows, padded, units));
            for (int m = 0; m < H::matrices; ++m) {
              const uint8* after = m + 1 < H::matrices      ? matrices[m + 1] + u0 * X::k_per_unit * G::bits / 8
                                   : u0 + units < num_units ? matrices[0] + (u0 + units) * X::k_per_unit * G::bits / 8
                                                            : matrices[0] + matrix_rows * w_stride;
              lanes_form<typename G::template Weights<X>>(matrices[m], w_stride, matrix_rows, blocks[m], s->panel, kPanelUnits,
                                                          padded, hidden, u0, units, after, soon, lanes_scales, tiles[m], padded,
                                                          s->staged);
            }
            u0 += units;
          }
        }
      if (!lanes_are_tokens) {
        if constexpr (Config::chunk_rows)
          chunk_rows_form<typename ChunksOf<Config::encoding, Config::has_zero_point>::type, Config::x_dtype>(
              H::matrices, matrices, next, w_stride, matrix_rows, blocks, tokens, scales, num_tokens, hidden, tiles,
              tile_stride, {(uint32(*)[kPreparedUnits])s->panel, s->chunk_scales});
        else
          rows_form<typename G::template Weights<Rows>, Elements<Rows>>(H::matrices, matrices, next, w_stride,
                                                                        matrix_rows, blocks, tokens, scales, num_tokens,
                                                                        hidden, tiles, tile_stride);
      }
    }

    // Epilogue.
    if constexpr (is_affine)
      for (int m = 0; m < H::matrices; ++m) {
        if (lanes_are_tokens) epilogue::affine_rows<S>(s->affine, m * kMaxRows, matrix_rows, 0, padded, tiles[m]);
        else epilogue::affine_tokens<S>(s->affine, m * kMaxRows, num_tokens, matrix_rows, tile_stride, tiles[m]);
      }
    activate_tile<S, Config>(s->tiles, lanes_are_tokens, rows, num_tokens, padded, tile_stride, row_stride,
                             {args.swiglu_alpha, args.swiglu_limit});

    // Store.
    auto* inter = static_cast<uint32*>(args.inter) + (group.slot + done) * units_per_token;
    const bool wants_panel = !Config::inter_is_fp32 && uses_lanes_form<Config, Config::w2_layout>(num_tokens);
    const float* tile = s->tiles[0];
    if constexpr (Config::w1_layout != Config::w2_layout || Config::inter_is_fp32) {
      if (lanes_are_tokens && !wants_panel) {
        transpose_tile(s->tiles[0], rows, padded, num_tokens, s->tiles[1], row_stride);
        tile = s->tiles[1];
      } else if (wants_panel && !lanes_are_tokens) {
        for (int i = 0; i < rows * padded; i += S::lanes) store(s->tiles[1] + i, typename S::floats(0.0f));
        transpose_tile(s->tiles[0], num_tokens, row_stride, rows, s->tiles[1], padded);
        tile = s->tiles[1];
      }
    }
    if (wants_panel) store_panel<S>(tile, rows, padded, inter, units_per_token, first_unit);
    else store_rows<S>(tile, num_tokens, rows, row_stride, inter + first_unit, units_per_token);
    done += num_tokens;
  }
}

}  // namespace gate_up

template <class Config> inline void cpu_gate_up(const CpuGateUpArgs& args) {
  using namespace gate_up;
  struct Local {
    Scratch scratch;
    FewPairs few;
  };
  auto* const local = (Local*)scratch<sizeof(Local)>();
  const int32 item = int32(nd_item<1>().get_group(0));
  const Routing routing = find_routing<Config>(args, local->few);
  if (item < routing.num_groups * args.num_ranges) gate_up_item<Config>(args, routing, item, item + 1, &local->scratch);
}

}  // namespace jitmoe::kernel

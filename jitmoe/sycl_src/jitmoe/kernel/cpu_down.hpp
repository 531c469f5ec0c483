// SPDX-License-Identifier: MIT
// Second GEMM of the MoE layer with routing weights and the sum over experts, on CPUs:
//
//   out[t][h] = round(sum over pairs p of token t, by expert:
//                     topk_weights[p] * (sum_i inter[p][i] * w2[e(p)][h][i] + w2_bias[e(p)][h]))
//
// (without topk_weights if weight_on_input: they are in the intermediate then).
//
// A work-item owns a range of columns h for all tokens and walks over all groups in the routing's order. So it
// alone writes its columns: no atomics, no second pass, the same order of summation every time, and every work-item
// does the same work however unevenly experts are loaded.
//
// | tensor        | shape           | dtype             | layout, owner
// | inter         | [slots][I]      | units             | workspace, layout of cpu/routing.hpp
// | w2            | [E][H][I]       | dtype             | expert stride, w2_stride between rows (nk) or columns (kn)
// |               | [E][H][bytes of I] | codes          | if quantized: strides in bytes (cpu/codes.hpp)
// | w2_scale, w2_zero_point         | scale_dtype, uint8 | if quantized; [E][blocks of n][blocks of k]; caller's
// | y_rows        | [slots][I]      | x_dtype           | read instead of inter if x_prepared; workspace, made by
// | y_scale, y_correction           |                   | cpu_rows with the scales of quantized inputs
// | w2_bias       | [E][H]          | bias_dtype        | dense; if has_bias; caller's
// | topk_weights  | [M][k]          | weights_dtype     | row stride topk_weights_row_stride; caller's
// | topk_ids, expert_map            |                   | read if few_pairs; caller's
// | sorted_pairs, groups            |                   | read otherwise; workspace, from route_serial
// | sums          | [ranges][M][h_block] | fp32         | workspace, a work-item's own columns
// | out           | [M][H]          | dtype             | row stride out_row_stride; caller's, may be hidden_states
//
// nd_range: (ranges of h_block columns), work-groups of 1 work-item. Local memory: one result tile, staged weights.
// Numerics: fp32 accumulation (int32 within a block if x_dtype is int8); scales multiply sums in fp32; routing weight
// applied in fp32; rounded once to dtype.
#pragma once

#include <jitmoe/cpu/chunk_rows.hpp>
#include <jitmoe/cpu/combine.hpp>
#include <jitmoe/cpu/routing.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/cpu/tiles.hpp>
#include <jitmoe/entry.hpp>
#include <jitmoe/epilogue/affine.hpp>

namespace jitmoe::kernel {

struct CpuDownArgs {
  const void* inter;
  const void* w2;
  const void* w2_bias;
  const void* topk_weights;
  const void* topk_ids;
  const void* expert_map;
  const void* sorted_pairs;
  const void* groups;
  void* sums;
  void* out;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 hidden_size;
  int32 intermediate_size;
  int32 h_block;  // columns of one range: a multiple of 16, at most kMaxColumns
  int64 w2_expert_stride;
  int64 w2_stride;
  int64 topk_ids_row_stride;
  int64 topk_weights_row_stride;
  int64 out_row_stride;
  // Quantized weights and inputs only (cpu/scales.hpp).
  const void* w2_scale = nullptr;
  const void* w2_zero_point = nullptr;
  int64 w2_scale_expert_stride = 0;
  int64 w2_scale_n_stride = 0;
  int64 w2_scale_k_stride = 0;
  int64 w2_zero_expert_stride = 0;
  int64 w2_zero_n_stride = 0;
  int64 w2_zero_k_stride = 0;
  int32 w2_block_n = 0;
  const void* y_rows = nullptr;        // [rows][y_rows_stride] x_dtype
  const void* y_scale = nullptr;       // [rows][blocks of input_block_k]
  const void* y_correction = nullptr;  // [rows][blocks of block_k]
  int64 y_rows_stride = 0;
};

namespace down {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

constexpr int kMaxColumns = 192;  // plan/cpu.py names the same number
constexpr int kPanelUnits = 512;  // units of K between two visits of the result tile: 128 KiB of panel

struct Scratch {
  float tile[kMaxColumns * kMaxBlockTokens];
  uint32 panel[kPanelUnits * kMaxBlockTokens];  // of y_rows
  uint32 staged[8 * kPanelUnits];
  float block_scales[kMaxBlockTokens];
  float chunk_scales[kChunkTokens][kPreparedScales];
  epilogue::Affine<kMaxColumns, kMaxBlockTokens> affine;
};
static_assert(kPanelUnits * kMaxBlockTokens >= kChunkTokens * kPreparedUnits, "the panel holds prepared inputs too");

// Range `range` of columns, before `next_range`. wait(g) returns once group g's intermediate is there.
template <class Config, class Wait>
inline void down_range(const CpuDownArgs& args, const Routing& routing, int32 range, int32 next_range, const Wait& wait,
                       Scratch* s) {
  using G = Gemm<Config>;
  using B = BlocksOf<Config>;
  using X = typename G::Lanes;
  using S = Simd<Config::isa, Config::dtype>;
  using Rows = typename G::Rows;
  (void)Config::bias_dtype, (void)Config::weights_dtype;
  (void)Config::scale_dtype, (void)Config::has_zero_point, (void)Config::x_scaled;  // not always read

  // Indices.
  const int32 h0 = range * args.h_block;
  const int32 left = args.hidden_size - h0;
  const int32 columns = left < args.h_block ? left : args.h_block;
  const int64 inner = args.intermediate_size;
  const int64 num_units = ceil_div(inner, X::k_per_unit);
  const int64 units_per_token = inter_units<X>(inner);

  // Tensors.
  const auto* topk_weights = static_cast<const element_t<Config::weights_dtype>*>(args.topk_weights);
  constexpr int64 element_bytes = Config::quantized ? 1 : num_bytes(Config::dtype);  // strides of codes count bytes
  const int64 w_stride = args.w2_stride * element_bytes;
  const int64 expert_bytes = args.w2_expert_stride * element_bytes;
  const auto* w_range = static_cast<const uint8*>(args.w2) + h0 * (Config::w2_layout == Layout::nk ? w_stride : element_bytes);
  auto* sums = static_cast<float*>(args.sums) + int64(range) * args.num_tokens * args.h_block;
  const int64 num_sums = int64(args.num_tokens) * args.h_block;  // a multiple of 16
  for (int64 i = 0; i < num_sums; i += S::lanes) store(sums + i, typename S::floats(0.0f));
  constexpr bool scales_rows = Config::quantized && B::block_k == 0;
  constexpr bool scales_tokens = Config::x_scaled && !B::input_blocks;
  constexpr bool is_affine = Config::has_bias || scales_rows || scales_tokens;
  if constexpr (is_affine) {
    epilogue::fill(1.0f, kMaxColumns, s->affine.row_scale);
    epilogue::fill(0.0f, kMaxColumns, s->affine.bias);
    epilogue::fill(1.0f, kMaxBlockTokens, s->affine.token_scale);
  }

  for (int32 group_idx = 0; group_idx < routing.num_groups; ++group_idx) {
    const Group group = routing.groups[group_idx];
    wait(group_idx);
    const auto* w = w_range + group.expert * expert_bytes;
    B blocks[1];
    if constexpr (Config::quantized)
      blocks[0].weights = second_scales<Config>(args, group.expert, h0);
    if constexpr (scales_rows)
      for (int n = 0; n < columns; ++n)
        blocks[0].template read<typename G::template Weights<X>>(n, 0, 1, s->affine.row_scale + n, nullptr);
    if constexpr (Config::has_bias)
      epilogue::copy_floats<Config::bias_dtype>(args.w2_bias, group.expert * int64(args.hidden_size) + h0, columns,
                                                s->affine.bias);
    for (int32 done = 0; done < group.tokens;) {
      const int num_tokens = block_tokens(group.tokens - done);
      const int32* pairs = routing.pairs + group.first + done;
      const auto* inter = static_cast<const uint32*>(args.inter) + (group.slot + done) * units_per_token;
      int32 tokens[kMaxBlockTokens];
      float weights[kMaxBlockTokens];
      const uint8* rows[kMaxBlockTokens];
      TokenScales scales[kMaxBlockTokens];
      const int padded = padded_tokens(num_tokens);
      for (int t = 0; t < padded; ++t) {
        const int t_there = t < num_tokens ? t : num_tokens - 1;
        if constexpr (Config::x_prepared) {
          const int64 row = group.slot + done + t_there;
          rows[t] = static_cast<const uint8*>(args.y_rows) + row * args.y_rows_stride * num_bytes(Config::x_dtype);
          scales[t] = token_scales<B>({args.y_scale, args.y_correction}, row, inner);
          if constexpr (scales_tokens) s->affine.token_scale[t] = static_cast<const float*>(args.y_scale)[row];
        } else {
          rows[t] = reinterpret_cast<const uint8*>(inter + t_there * units_per_token);
        }
      }
      for (int t = 0; t < num_tokens; ++t) {
        tokens[t] = pairs[t] / args.top_k;
        weights[t] = Config::weight_on_input
                         ? 1.0f
                         : to_float<Config::weights_dtype>(
                               topk_weights[tokens[t] * args.topk_weights_row_stride + pairs[t] % args.top_k]);
      }
      done += num_tokens;
      // What is read next: the same range of the next group, or this one's again.
      const int32 next = group_idx + (done == group.tokens && group_idx + 1 < routing.num_groups ? 1 : 0);
      const auto* w_next = w_range + routing.groups[next].expert * expert_bytes;

      if (uses_lanes_form<Config, Config::w2_layout>(num_tokens)) {
        if constexpr (!Config::few_pairs && Config::w2_layout == Layout::nk) {
          for (int64 u0 = 0; u0 < num_units;) {
            const int64 units = chunk_units<X, B>(u0, num_units, kPanelUnits);
            const int width = Panel<X>::width(padded);
            const uint32* panel = inter + u0 * width;
            int64 panel_units = units_per_token;
            LanesScales lanes_scales;
            // Next is more of this block's panel, or the beginning of the next block's.
            SoonTokens soon;
            const uint8* parts[kMaxBlockTokens];
            if constexpr (Config::x_prepared) {
              pack_panel<X>(rows, padded, inner, u0, units, s->panel, kPanelUnits);
              panel = s->panel;
              panel_units = kPanelUnits;
            } else {
              const bool is_last = u0 + units == num_units;
              const Group& soon_group = routing.groups[is_last ? next : group_idx];
              const int soon_done = next == group_idx ? done : 0;
              const int soon_padded = is_last ? padded_tokens(block_tokens(soon_group.tokens - soon_done)) : padded;
              const int soon_width = Panel<X>::width(soon_padded);
              const uint32* at = is_last ? static_cast<const uint32*>(args.inter) +
                                               (soon_group.slot + soon_done) * units_per_token
                                         : inter + (u0 + units) * width;
              int num_parts = 0;
              for (int t = 0; t < soon_padded; t += soon_width)
                parts[num_parts++] = reinterpret_cast<const uint8*>(at + t * units_per_token);
              soon = SoonTokens(parts, num_parts, 0, 4 * soon_width * units, lanes_fetches<X>(columns, padded, units));
            }
            if constexpr (B::input_blocks)
              lanes_scales = gather_scales<B>(scales, padded, u0 * X::k_per_unit / B::block_k, s->block_scales);
            const uint8* after = u0 + units < num_units ? w + (u0 + units) * X::k_per_unit * G::bits / 8 : w_next;
            lanes_form<typename G::template Weights<X>>(w, w_stride, columns, blocks[0], panel, panel_units, padded, inner,
                                                        u0, units, after, soon, lanes_scales, s->tile, padded, s->staged);
            u0 += units;
          }
          if constexpr (is_affine) epilogue::affine_rows<S>(s->affine, 0, columns, 0, padded, s->tile);
          add_transposed<S>(s->tile, padded, columns, tokens, weights, num_tokens, sums, args.h_block);
        }
      } else {
        if constexpr (Config::w2_layout == Layout::nk) {
          const uint8* const matrices[1] = {w};
          float* const tiles[1] = {s->tile};
          // After the last group the next range begins with the first one.
          const bool ends = done == group.tokens && group_idx + 1 == routing.num_groups;
          const uint8* const w_soon =
              ends ? w_range + (next_range - range) * int64(args.h_block) * w_stride +
                         routing.groups[0].expert * expert_bytes
                   : w_next;
          if constexpr (Config::chunk_rows)
            chunk_rows_form<typename ChunksOf<Config::encoding, Config::has_zero_point>::type, Config::x_dtype>(
                1, matrices, w_soon, w_stride, columns, blocks, rows, scales, num_tokens, inner, tiles, args.h_block,
                {(uint32(*)[kPreparedUnits])s->panel, s->chunk_scales});
          else
            rows_form<typename G::template Weights<Rows>, Elements<Rows>>(1, matrices, w_soon, w_stride, columns,
                                                                          blocks, rows, scales, num_tokens, inner,
                                                                          tiles, args.h_block);
        } else {
          columns_form<S, X>(reinterpret_cast<const typename S::element*>(w), args.w2_stride, columns, rows, num_tokens,
                             inner, s->tile, args.h_block);
        }
        if constexpr (is_affine) epilogue::affine_tokens<S>(s->affine, 0, num_tokens, columns, args.h_block, s->tile);
        add_rows<S>(s->tile, columns, tokens, weights, num_tokens, sums, args.h_block);
      }
    }
  }

  store_sums<S>(sums, args.h_block, args.num_tokens, columns, static_cast<typename S::element*>(args.out) + h0,
                args.out_row_stride);
}

}  // namespace down

template <class Config> inline void cpu_down(const CpuDownArgs& args) {
  using namespace down;
  struct Local {
    Scratch scratch;
    FewPairs few;
  };
  auto* const local = (Local*)scratch<sizeof(Local)>();
  const Routing routing = find_routing<Config>(args, local->few);
  const int32 range = int32(nd_item<1>().get_group(0));
  down_range<Config>(args, routing, range, range + 1, [](int32) {}, &local->scratch);
}

}  // namespace jitmoe::kernel

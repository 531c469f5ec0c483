// SPDX-License-Identifier: MIT
// Second GEMM of the MoE layer with routing weights and the sum over experts, on CPUs:
//
//   out[t][h] = round(sum over pairs p of token t, by expert: topk_weights[p] * sum_i inter[p][i] * w2[e(p)][h][i])
//
// A work-item owns a range of columns h for all tokens and walks over all blocks in the routing table's order. So it
// alone writes its columns: no atomics, no second pass, the same order of summation every time, and every work-item
// does the same work however unevenly experts are loaded.
//
// | tensor        | shape           | dtype             | layout, owner
// | inter         | [M * k][I]      | units             | workspace, layout of cpu/block.hpp
// | w2            | [E][H][I]       | dtype             | expert stride, w2_stride between rows (nk) or columns (kn)
// | topk_weights  | [M][k]          | weights_dtype     | row stride topk_weights_row_stride; caller's
// | sorted_pairs, blocks, num_blocks                    | workspace, from route_serial
// | sums          | [ranges][M][h_block] | fp32         | workspace, a work-item's own columns
// | out           | [M][H]          | dtype             | row stride out_row_stride; caller's, may be hidden_states
//
// nd_range: (ranges of h_block columns), work-groups of 1 work-item. Local memory: one result tile
// [kMaxBlockTokens][kMaxColumns] fp32. On the stack: packed tokens, one panel of weights.
// Numerics: fp32 accumulation; routing weight applied in fp32; rounded once to dtype.
#pragma once

#include <jitmoe/cpu/block.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

struct CpuDownArgs {
  const void* inter;
  const void* w2;
  const void* topk_weights;
  const void* sorted_pairs;
  const void* blocks;
  const void* num_blocks;
  void* sums;
  void* out;
  int32 num_tokens;
  int32 top_k;
  int32 hidden_size;
  int32 intermediate_size;
  int32 h_block;       // columns of one range: a multiple of 32, at most kMaxColumns
  int32 inter_stride;  // units
  int64 w2_expert_stride;
  int64 w2_stride;
  int64 topk_weights_row_stride;
  int64 out_row_stride;
};

namespace down {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

constexpr int kMaxColumns = 256;  // plan/cpu.py names the same number


}  // namespace down

template <class Config> inline void cpu_down(const CpuDownArgs& args) {
  using namespace down;
  using S = Simd<Config::isa, Config::dtype>;
  using A = InterSimd<Config::isa, Config::dtype>;
  using element = typename S::element;
  auto* const tile = (float*)scratch<kMaxBlockTokens * kMaxColumns * sizeof(float)>();
  PanelScratch<S> panel;

  // Indices.
  const int32 range = int32(nd_item<1>().get_group(0));
  const int32 h0 = range * args.h_block;
  const int32 left = args.hidden_size - h0;
  const int32 columns = left < args.h_block ? left : args.h_block;
  const int64 inner = args.intermediate_size;
  const int64 inter_units = ceil_div(inner, S::k_per_unit);

  // Tensors.
  const auto* topk_weights = static_cast<const element_t<Config::weights_dtype>*>(args.topk_weights);
  auto* sums = static_cast<float*>(args.sums) + int64(range) * args.num_tokens * args.h_block;
  const int64 num_sums = int64(args.num_tokens) * args.h_block;  // a multiple of 16
  for (int64 i = 0; i < num_sums; i += S::lanes) store(sums + i, typename S::floats(0.0f));

  const int64 to_n = Config::w2_layout == Layout::nk ? args.w2_stride : 1;
  const int64 to_k = Config::w2_layout == Layout::nk ? 1 : args.w2_stride;
  const int32 num_blocks = *static_cast<const int32*>(args.num_blocks);
  for (int32 block_idx = 0; block_idx < num_blocks; ++block_idx) {
    const Block block = block_at(args.blocks, block_idx);
    const auto* pairs = static_cast<const int32*>(args.sorted_pairs) + block.first;
    const auto* inter = static_cast<const uint32*>(args.inter) + int64(block.first) * args.inter_stride;
    const auto* w = static_cast<const element*>(args.w2) + block.expert * args.w2_expert_stride +
                    h0 * to_n;
    const int32 next_expert = block_idx + 1 < num_blocks ? block_at(args.blocks, block_idx + 1).expert : block.expert;
    const auto* next_w = w + (next_expert - block.expert) * args.w2_expert_stride;
    int32 tokens[kMaxBlockTokens];
    float weights[kMaxBlockTokens];
    for (int t = 0; t < block.tokens; ++t) {
      tokens[t] = pairs[t] / args.top_k;
      weights[t] = to_float<Config::weights_dtype>(
          topk_weights[tokens[t] * args.topk_weights_row_stride + pairs[t] % args.top_k]);
    }

    const typename A::element* rows[kMaxBlockTokens];
    for (int t = 0; t < block.tokens; ++t)
      rows[t] = reinterpret_cast<const typename A::element*>(inter + int64(t) * args.inter_stride);
    if (uses_rows_form<Config::w2_layout>(block.tokens)) {
      rows_form<S, A>(w, args.w2_stride, columns, rows, block.tokens, inner, tile, args.h_block);
    } else {
      const WeightRange<S> range_of_w{w, args.w2_stride, columns};
      for (int64 u0 = 0; u0 < inter_units; u0 += kPanelUnits) {
        const int units = int(inter_units - u0 < kPanelUnits ? inter_units - u0 : kPanelUnits);
        const int64 ahead = u0 + kPanelUnits < inter_units ? kPanelUnits : block.tokens * int64(args.inter_stride) - u0;
        pack_tokens<A>(rows, block.tokens, inner, u0, units, ahead, panel.tokens);
        // The same columns' next units of K, or the next block's first ones.
        const int64 next_k = (u0 + kPanelUnits) * S::k_per_unit;
        const auto* soon = next_k < inner ? w + kPanelUnits * S::k_per_unit * to_k : next_w - u0 * S::k_per_unit * to_k;
        const WeightRange<S> next{soon, args.w2_stride, columns};
        panel_form<S, Config::w2_layout>(range_of_w, next, block.tokens, inner, u0, units, tile, args.h_block,
                                         &panel);
      }
    }
    for (int t = 0; t < block.tokens; ++t) {
      float* sum = sums + int64(tokens[t]) * args.h_block;
      const float* row = tile + t * args.h_block;
      const typename S::floats weight(weights[t]);
      for (int n = 0; n < columns; n += S::lanes)
        store(sum + n, multiply_add<S::isa, S::lanes>(weight, load<typename S::floats>(row + n),
                                                      load<typename S::floats>(sum + n)));
    }
  }

  // Store.
  auto* out = static_cast<element*>(args.out) + h0;
  for (int64 t = 0; t < args.num_tokens; ++t) {
    const float* sum = sums + t * args.h_block;
    element* row = out + t * args.out_row_stride;
    int n = 0;
    for (; n + S::lanes <= columns; n += S::lanes)
      store_floats<Config::dtype, S::lanes>(row + n, load<typename S::floats>(sum + n));
    for (; n < columns; ++n) row[n] = from_float<Config::dtype>(sum[n]);
  }
}

}  // namespace jitmoe::kernel

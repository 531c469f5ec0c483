// SPDX-License-Identifier: MIT
// Second GEMM of the MoE layer with routing weights and the sum over experts, on CPUs with AMX:
//
//   out[t][h] = round(sum over pairs p of token t, by expert:
//                     topk_weights[p] * (sum_i inter[p][i] * w2[e(p)][h][i] + w2_bias[e(p)][h]))
//
// A work-item owns a range of columns h for all tokens and walks over all groups in the routing's order, as in
// cpu_down.hpp and for the same reasons.
//
// | tensor        | shape                   | dtype         | layout, owner
// | inter         | [slots / 16][I / 2][16] | pairs of dtype | workspace, from cpu_gate_up_amx
// | y_rows        | [slots / 16][I / n][16] | n of x_dtype  | read instead of inter if x_prepared; workspace, as in cpu_tiles.hpp
// |               |                         |               | each tile followed by its scales if blocks of K have their
// |               |                         |               | own (cpu/amx_form.hpp)
// | y_scale       | [slots]                 | fp32          | likewise, if all of K has one
// | w2            | [E][H][I]               | dtype         | expert stride, w2_stride between rows (nk) or columns (kn)
// | w2_bias       | [E][H]                  | bias_dtype    | dense; if has_bias; caller's
// | topk_weights  | [M][k]                  | weights_dtype | row stride topk_weights_row_stride; caller's
// | topk_ids, expert_map                    |               | read if few_pairs; caller's
// | sorted_pairs, groups                    |               | read otherwise; workspace, from route_serial
// | sums          | [ranges][h_block / 32][M][32] | fp32    | workspace, a work-item's own columns
// | out           | [M][H]                  | dtype         | row stride out_row_stride; caller's, may be hidden_states
//
// dtype is bf16 or fp16; fp16 as in cpu_gate_up_amx.hpp.
//
// nd_range: (ranges of h_block columns), work-groups of 1 work-item. A step is 32 columns of one expert. Beside its
// multiplications, the step before it is scaled and added to the sums, and its own sums and the next tokens are asked for.
// Local memory: the sums of two steps, or of all that take turns (cpu/amx_form.hpp), staged weights.
// Numerics: fp32 accumulation (products in int32 if x_dtype is int8, those of a block of K if it is int16); routing weight applied in fp32; rounded once.
#pragma once

#include <jitmoe/cpu/amx_codes.hpp>
#include <jitmoe/cpu/beside.hpp>
#include <jitmoe/cpu/combine.hpp>
#include <jitmoe/cpu/routing.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/entry.hpp>
#include <jitmoe/epilogue/affine.hpp>

namespace jitmoe::kernel {

struct CpuDownAmxArgs {
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
  int32 h_block;  // columns of one range: a multiple of 32
  int64 w2_expert_stride;
  int64 w2_stride;
  int64 topk_ids_row_stride;
  int64 topk_weights_row_stride;
  int64 out_row_stride;
  // Quantized weights only (cpu/scales.hpp).
  const void* w2_scale = nullptr;
  const void* w2_zero_point = nullptr;
  int64 w2_scale_expert_stride = 0;
  int64 w2_scale_n_stride = 0;
  int64 w2_scale_k_stride = 0;
  int64 w2_zero_expert_stride = 0;
  int64 w2_zero_n_stride = 0;
  int64 w2_zero_k_stride = 0;
  int32 w2_block_n = 0;
  const void* y_rows = nullptr;
  const void* y_scale = nullptr;
  const void* y_correction = nullptr;  // not read
  int64 y_rows_stride = 0;             // likewise
};

namespace down_amx {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

using S = Simd<CpuIsa::amx_bf16, DType::bf16>;

constexpr int kBlockTokens = kMaxTiles * amx::kTokens;
constexpr int kColumns = 2 * amx::kRows;  // of a step

// Tokens of one expert that are multiplied together.
struct Block {
  int num_tokens;
  int32 tokens[kBlockTokens];
  float weights[kBlockTokens];
};

using Affine = epilogue::Affine<2 * amx::kRows, kBlockTokens>;

template <class W> struct Scratch {
  float sums[kMaxSums][2 * amx::kTileFloats];
  Block blocks[2];
  FormScratch<W> form;
  Affine affine[2];
  FewPairs few;
};

// A step whose products, products[tile][32][16], are still to be added to sums[M][32].
struct Ready {
  float* products = nullptr;
  const Affine* affine = nullptr;
  const Block* block = nullptr;
  float* sums = nullptr;
};

// What is done to products before they are added.
template <class Config> constexpr bool scales_tokens() { return Config::x_scaled && !scales_sums<Config>(); }
template <class Config> constexpr bool is_affine() {
  return Config::has_bias || scales_tokens<Config>() || scales_rows<Config>();
}

// Adds half a tile's columns: unit i of 2 per tile.
template <class Config, class Sum> [[gnu::noinline]] void add_unit(const Ready& ready, int64 i) {
  const int64 t0 = i / 2 * amx::kTokens;
  const int64 left = ready.block->num_tokens - t0;
  if constexpr (is_affine<Config>())
    epilogue::affine_rows<S, Sum>(*ready.affine, int(i % 2) * amx::kRows, amx::kRows, int(t0), amx::kTokens,
                                  ready.products + i * amx::kTileFloats);
  add_transposed<S>(ready.products + i * amx::kTileFloats, amx::kTokens, amx::kRows, ready.block->tokens + t0,
                    ready.block->weights + t0, left < amx::kTokens ? int(left) : amx::kTokens,
                    ready.sums + i % 2 * amx::kRows, kColumns);
}

}  // namespace down_amx

template <class Config> inline void cpu_down_amx(const CpuDownAmxArgs& args) {
  using namespace down_amx;
  using W = TilesOf<Config, Config::w2_layout>;
  using Sum = SumOf<W>;
  (void)Config::bias_dtype, (void)Config::weights_dtype, (void)Config::encoding, (void)Config::scale_dtype;
  (void)Config::has_zero_point, (void)Config::input_block_k, (void)Config::scale_block_k;  // not always read
  (void)Config::x_scaled;
  auto* const s = (Scratch<W>*)scratch<sizeof(Scratch<W>)>();

  // Indices.
  const int32 range = int32(nd_item<1>().get_group(0));
  const int32 h0 = range * args.h_block;
  const int32 left = args.hidden_size - h0;
  const int32 columns = left < args.h_block ? left : args.h_block;
  const int64 inner = args.intermediate_size / (elements_are_pairs<Config>() ? 2 : 1);  // elements, see amx_form.hpp
  const Routing routing = find_routing<Config>(args, s->few);

  // Tensors.
  const int64 inter_units = token_tile_dwords<W>(inner) / amx::kTokens;
  const auto* topk_weights = static_cast<const element_t<Config::weights_dtype>*>(args.topk_weights);
  auto* sums = static_cast<float*>(args.sums) + int64(range) * args.num_tokens * args.h_block;
  const int64 num_sums = int64(args.num_tokens) * args.h_block;
  for (int64 i = 0; i < num_sums; i += S::lanes) store(sums + i, S::floats(0.0f));
  const auto* const inter = static_cast<const uint32*>(Config::x_prepared ? args.y_rows : args.inter);
  if constexpr (is_affine<Config>())
    for (Affine& affine : s->affine) {
      epilogue::fill(0.0f, 2 * amx::kRows, affine.bias);
      epilogue::fill(1.0f, 2 * amx::kRows, affine.row_scale);
      epilogue::fill(1.0f, kBlockTokens, affine.token_scale);
    }
  const auto rows_of = [&](int32 expert, int64 step) {
    const int32 n = int32(step) * kColumns;
    const int end = n < columns ? columns : n + 2 * amx::kRows;
    const int64 to_row = Config::w2_layout == Layout::nk ? args.w2_stride : 1;
    const auto* w = static_cast<const typename W::Element*>(args.w2) + expert * args.w2_expert_stride + (h0 + n) * to_row;
    typename W::Rows rows{};
    rows.stride = args.w2_stride;
    for (int a = 0; a < 2; ++a) {
      rows.first[a] = w + a * amx::kRows * to_row;
      if constexpr (Config::quantized)
        rows.blocks[a].weights = second_scales<Config>(args, expert, h0 + n + a * amx::kRows);
      const int there = end - n - a * amx::kRows;
      rows.num_rows[a] = there < 0 ? 0 : there < amx::kRows ? there : amx::kRows;
    }
    return rows;
  };

  const int64 steps = ceil_div(columns, kColumns);
  const auto turns_of = [&](int32 num_tiles, int64 first) {
    return Turns<W>::of(first, first + steps, inner, num_tiles);
  };
  amx::configure();
  SoonWeights soon_weights;
  if (routing.num_groups > 0)
    turns_of(1, 0).lines([&](int64 step) { return rows_of(routing.groups[0].expert, step); }).fetch(1 << 30);
  Ready ready;
  Pace adding;
  const auto add = [&](int64 i) { add_unit<Config, Sum>(ready, i); };
  int step_parity = 0, block_parity = 0;
  for (int32 group_idx = 0; group_idx < routing.num_groups; ++group_idx) {
    const Group group = routing.groups[group_idx];
    for (int32 done = 0; done < group.tokens; done += kBlockTokens) {
      const int num_tokens = group.tokens - done < kBlockTokens ? group.tokens - done : kBlockTokens;
      const int num_tiles = int(ceil_div(num_tokens, amx::kTokens));
      const int32* pairs = routing.pairs + group.first + done;
      const uint32* const tiles = inter + (group.slot + done) * inter_units;
      Block& block = s->blocks[block_parity];
      block_parity ^= 1;
      block.num_tokens = num_tokens;
      for (int t = 0; t < num_tokens; ++t) {
        const int32 token = pairs[t] / args.top_k;
        block.tokens[t] = token;
        block.weights[t] = Config::weight_on_input
                               ? 1.0f
                               : to_float<Config::weights_dtype>(
                                     topk_weights[token * args.topk_weights_row_stride + pairs[t] % args.top_k]);
      }
      if constexpr (scales_tokens<Config>()) {
        adding.finish(add);  // needs the scales of the tokens before
        const float* const scales = static_cast<const float*>(args.y_scale) + group.slot + done;
        for (Affine& affine : s->affine)
          for (int t = 0; t < num_tokens; ++t) affine.token_scale[t] = scales[t];
      }
      const int64 num_multiplications = multiplications<W>(num_tiles, inner);
      // The tokens that are multiplied next, not so early that weights push them out of the cache again.
      const bool more_blocks = done + num_tokens < group.tokens;
      const bool more_groups = group_idx + 1 < routing.num_groups;
      Lines soon;
      if (more_blocks || more_groups) {
        const Group& next = routing.groups[more_blocks ? group_idx : group_idx + 1];
        const int from = more_blocks ? done + num_tokens : 0;
        const int count = next.tokens - from < kBlockTokens ? next.tokens - from : kBlockTokens;
        soon = Lines::dense(inter + (next.slot + from) * inter_units,
                            align_up(4 * align_up(count, amx::kTokens) * inter_units, 256));
      }
      const int64 most = ceil_div(kSoonBytes, 2 * kColumns * inner);
      const int64 asking_steps = steps < most ? steps : most;
      Pace asking_tokens(soon.count(), asking_steps * num_multiplications);
      const auto ask_tokens = [&](int64) { soon.fetch(1); };
      if constexpr (takes_turns<W>()) adding.finish(add);  // its products are where the first ones go
      // What is read after this block: for more tokens the same, else the next expert's, or another work-item's columns.
      const int32 expert_after = routing.groups[more_blocks ? group_idx : more_groups ? group_idx + 1 : 0].expert;
      const bool has_after = more_blocks || more_groups || h0 + columns < args.hidden_size;
      const auto rows_now = [&](int64 step) { return rows_of(group.expert, step); };
      const auto rows_after = [&](int64 step) { return rows_of(expert_after, step); };
      const Turns<W> turns_after = turns_of(num_tiles, more_blocks || more_groups ? 0 : steps);
      Turns<W> turns = turns_of(num_tiles, 0);
      for (bool goes_on = true; goes_on;) {
        // GEMM.
        const int64 step = turns.step;
        const int32 n = int32(step) * kColumns;
        const bool completes_step = turns.completes_step();
        float* const products = s->sums[takes_turns<W>() ? turns.slot() * num_tiles : step_parity * kMaxTiles];
        const auto turn = Turn<W>::of(turns, rows_now);
        soon_weights.plan(turns, rows_now, has_after ? &turns_after : nullptr, rows_after);
        goes_on = turns.next();
        float* const step_sums = sums + int64(n) * args.num_tokens;
        const int64 turn_multiplications = multiplications<W>(num_tiles, turn.to - turn.from);
        Pace asking_sums(completes_step ? num_tokens : 0, turn_multiplications);
        const auto ask_sums = [&](int64 t) {
          prefetch(step_sums + int64(block.tokens[t]) * kColumns);
          prefetch(step_sums + int64(block.tokens[t]) * kColumns + amx::kRows);
        };
        if constexpr (Config::few_pairs) asking_tokens.finish(ask_tokens);
        amx_form<W>(turn, soon_weights, tiles, num_tiles, inner, products, s->form, [&] {
          if constexpr (!Config::few_pairs) {  // else memory decides, and prefetches of weights go first
            adding.turn(add);
            asking_sums.turn(ask_sums);
            if (step >= steps - asking_steps) asking_tokens.turn(ask_tokens);
          }
        });
        adding.finish(add);
        if (!completes_step) continue;
        // Epilogue.
        Affine& affine = s->affine[step_parity];
        if constexpr (scales_rows<Config>()) {
          const auto rows = rows_of(group.expert, step);
          uint32 unused;  // zero points are subtracted where codes are staged
          for (int a = 0; a < 2; ++a)
            for (int i = 0; i < rows.num_rows[a]; ++i)
              rows.blocks[a].template read<typename W::W>(i, 0, 1, affine.row_scale + a * amx::kRows + i, &unused);
        }
        if constexpr (Config::has_bias)
          epilogue::copy_floats<Config::bias_dtype>(args.w2_bias, group.expert * int64(args.hidden_size) + h0 + n,
                                                    columns - n < kColumns ? columns - n : kColumns, affine.bias);
        ready = {products, &affine, &block, step_sums};
        adding = Pace(2 * num_tiles, turn_multiplications);
        step_parity ^= 1;
      }
    }
  }
  adding.finish(add);
  amx::release();

  auto* const out = static_cast<uint16*>(args.out) + h0;
  for (int32 n = 0; n < columns; n += kColumns)
    store_sums<Simd<CpuIsa::amx_bf16, Config::dtype>>(sums + int64(n) * args.num_tokens, kColumns, args.num_tokens,
                  columns - n < kColumns ? columns - n : kColumns, out + n, args.out_row_stride);
}

}  // namespace jitmoe::kernel

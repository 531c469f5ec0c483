// SPDX-License-Identifier: MIT
// First GEMM of the MoE layer with its activation, on CPUs with AMX. Formula and Config::gate_up as in cpu_gate_up.hpp.
//
// | tensor        | shape                | dtype | layout, owner
// | hidden_states | [M][H]               | dtype | row stride x_row_stride, dense rows; caller's
// | w1            | [E][2I][H]           | dtype | expert stride, and w1_stride between rows (nk) or between columns of
// |               |                      |       | the dense dimension (kn); caller's; if quantized: codes, with
// |               |                      |       | w1_scale and w1_zero_point as in cpu_gate_up.hpp
// | w1_up, w1_bias, topk_weights         |       | as in cpu_gate_up.hpp
// | x_rows, x_scale                      |       | read instead of hidden_states if x_prepared, as in cpu_gate_up.hpp;
// |               |                      |       | bf16, or with an even H int8 or int16 in planes of bytes
// | topk_ids, expert_map                 |       | read if few_pairs; caller's
// | sorted_pairs, groups                 |       | read otherwise; workspace, from route_serial
// | panels        | [num_items][block_tokens][H] | x_dtype | workspace, token tiles of one work-item's current block, each
// |               |                      |       | followed by its scales if blocks of K have their own (amx_form.hpp);
// |               |                      |       | int16: high and low bytes in turn
// | inter         | [slots / 16][I / 2][16]      | pairs of dtype | workspace, token tiles (cpu/amx_form.hpp), zero past I;
// |               | [slots / 16][I][16]          | fp32  | if inter_is_fp32 (it will be quantized, cpu_tiles.hpp)
//
// dtype is bf16 or fp16. fp16 that are not prepared are multiplied as such if isa is amx_fp16; else each number of panels
// and intermediate is two bf16 (cpu/amx_split.hpp).
//
// nd_range: (num_items), work-groups of 1 work-item, which have equal shares of all rows of all active experts
// (cpu/shares.hpp). A step is 16 gate rows and the same 16 up rows, whose product tiles meet in the activation, or 32 rows
// without a gate.
// Beside the multiplications of a step, the step before it is scaled, activated and stored; the next tokens are asked for.
// Local memory: the sums of two steps, or of all that take turns (cpu/amx_form.hpp), staged weights.
// Numerics: fp32 accumulation in a fixed order (int32 if x_dtype is int8, and within a block of K if it is int16); activation
// and product in fp32; rounded once to dtype (not at all if inter_is_fp32).
#pragma once

#include <jitmoe/cpu/amx_codes.hpp>
#include <jitmoe/cpu/beside.hpp>
#include <jitmoe/cpu/halves.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/cpu/shares.hpp>
#include <jitmoe/entry.hpp>
#include <jitmoe/epilogue/activation.hpp>
#include <jitmoe/epilogue/affine.hpp>

namespace jitmoe::kernel {

struct CpuGateUpAmxArgs {
  const void* hidden_states;
  const void* w1;
  const void* w1_up;
  const void* w1_bias;
  const void* topk_weights;
  const void* topk_ids;
  const void* expert_map;
  const void* sorted_pairs;
  const void* groups;
  void* panels;
  void* inter;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 hidden_size;
  int32 intermediate_size;
  int32 num_items;
  int32 block_tokens;  // tokens of one expert that are multiplied together: a multiple of 16, at most kMaxTiles * 16
  int64 x_row_stride;
  int64 w1_expert_stride;
  int64 w1_stride;
  int64 topk_ids_row_stride;
  int64 topk_weights_row_stride;
  float swiglu_alpha;
  float swiglu_limit;  // infinity: none
  // Quantized weights only (cpu/scales.hpp).
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
  const void* x_correction = nullptr;  // not read
  int64 x_rows_stride = 0;
};

namespace gate_up_amx {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

using S = Simd<CpuIsa::amx_bf16, DType::bf16>;

constexpr int kBlockTokens = kMaxTiles * amx::kTokens;
constexpr int kPartBytes = 256;  // of a token, asked for at once

using Affine = epilogue::Affine<2 * amx::kRows, kBlockTokens>;

template <class W> struct Scratch {
  float sums[kMaxSums][2 * amx::kTileFloats];
  FormScratch<W> form;
  Affine affine[2];
  FewPairs few;
};

// Tokens of one expert that are multiplied together, and this work-item's steps of the expert.
struct Block {
  int32 group_idx = -1;
  Group group = {};
  int32 done = 0;  // tokens of the group in blocks before
  int num_tokens = 0;
  int64 first = 0, last = 0;

  int num_tiles() const { return int(ceil_div(num_tokens, amx::kTokens)); }
  bool is_last_of_group() const { return done + num_tokens == group.tokens; }
};

// What is done to sums before they are activated.
template <class Config> constexpr bool scales_tokens() {
  return Config::weight_on_input || (Config::x_scaled && !scales_sums<Config>());
}
template <class Config> constexpr bool is_affine() {
  return Config::has_bias || scales_tokens<Config>() || scales_rows<Config>();
}

// Stores rows 2 u and 2 u + 1 of the intermediate of one step's 32 rows and the 16 tokens from t on, sums[32][16].
template <class Config, class Sum>
[[gnu::noinline]] void store_activated(const Sum* sums, const Affine& affine, int u, int t,
                                       epilogue::ActivationNumbers numbers, uint32* unit) {
  using H = Halves<Config::gate_up>;
  const auto row = [&](int n) {
    if constexpr (is_affine<Config>()) return epilogue::affine_row<S>(affine, n, t, sums + n * amx::kTokens);
    else return load<S::floats>(sums + n * amx::kTokens);
  };
  S::floats value[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int gate = (2 * u + i) * H::rows_per_i;
    if constexpr (H::gated)
      value[i] = epilogue::activate_gated<Config::activation, 16>(
          row(gate), row(gate + (H::interleaved ? 1 : amx::kRows)), numbers);
    else
      value[i] = epilogue::activate_ungated<Config::activation, 16>(row(gate), numbers);
  }
  if constexpr (Config::inter_is_fp32) {
    store(unit, value[0]);
    store(unit + amx::kTokens, value[1]);
  } else if constexpr (splits(Config::isa, Config::dtype))
    store_split(SplitFloats(round_to<DType::fp16, 16>(value[0])), SplitFloats(round_to<DType::fp16, 16>(value[1])), unit);
  else
    store(unit, half_bits<Config::dtype, 16>(value[0]) | (half_bits<Config::dtype, 16>(value[1]) << 16));
}

}  // namespace gate_up_amx

template <class Config> inline void cpu_gate_up_amx(const CpuGateUpAmxArgs& args) {
  using namespace gate_up_amx;
  using W = TilesOf<Config, Config::w1_layout>;
  using H = Halves<Config::gate_up>;
  using Sum = SumOf<W>;
  constexpr int parts = parts_of<W>;  // of an input
  constexpr int inter_parts = Config::inter_is_fp32 || splits(Config::isa, Config::dtype) ? 2 : 1;
  (void)Config::bias_dtype, (void)Config::weights_dtype, (void)Config::encoding, (void)Config::scale_dtype;
  (void)Config::has_zero_point, (void)Config::input_block_k, (void)Config::scale_block_k;  // not always read
  (void)Config::x_by_slot, (void)Config::x_scaled;
  auto* const s = (Scratch<W>*)scratch<sizeof(Scratch<W>)>();

  // Indices.
  const int32 item = int32(nd_item<1>().get_group(0));
  const Routing routing = find_routing<Config>(args, s->few);
  const int64 hidden = args.hidden_size / (elements_are_pairs<Config>() ? 2 : 1);  // elements, see amx_form.hpp
  const int64 inner = args.intermediate_size;
  constexpr int step_rows = H::gated ? amx::kRows : 2 * amx::kRows;  // of the intermediate
  const int64 num_steps = ceil_div(inner, step_rows);
  Shares shares(routing, num_steps, item, args.num_items);

  // Tensors.
  const int64 panel_units = align_up(ceil_div(hidden, 2), 16);
  const int64 inter_units = align_up(ceil_div(inner, 2), 16);
  const int64 panel_dwords = token_tile_dwords<W>(hidden);
  const int64 inter_dwords = inter_parts * inter_units * amx::kTokens;
  auto* const panel = static_cast<uint32*>(args.panels) + int64(item) * args.block_tokens / amx::kTokens * panel_dwords;
  auto* const inter = static_cast<uint32*>(args.inter);
  const auto rows_of = [&](int32 expert, int64 step) {
    const int64 to_row = Config::w1_layout == Layout::nk ? args.w1_stride : 1;
    const int64 i = step * step_rows;
    const int64 offset = expert * args.w1_expert_stride;
    const int64 left = H::rows_per_i * (inner - i);
    typename W::Rows rows{};
    rows.stride = args.w1_stride;
    for (int a = 0; a < 2; ++a) {
      const int before = H::matrices == 2 ? 0 : a * amx::kRows;  // rows of the same block in the first tile
      const int m = H::matrices == 2 ? a : 0;
      rows.first[a] = H::template block<typename W::Element>(args.w1, args.w1_up, offset, to_row, m, i, inner) +
                      before * to_row;
      if constexpr (Config::quantized)
        rows.blocks[a].weights = first_scales<Config>(args, expert, H::row(m, i, inner) + before);
      const int64 there = left - before;
      rows.num_rows[a] = there < 0 ? 0 : there < amx::kRows ? int(there) : amx::kRows;
    }
    return rows;
  };
  if constexpr (is_affine<Config>())
    for (Affine& affine : s->affine) {
      epilogue::fill(1.0f, 2 * amx::kRows, affine.row_scale);
      epilogue::fill(0.0f, 2 * amx::kRows, affine.bias);
      epilogue::fill(1.0f, kBlockTokens, affine.token_scale);
    }

  // Blocks of this work-item, one after the other; without tokens past the last one.
  const auto block_after = [&](Block block) {
    block.done += block.num_tokens;
    while (block.done == block.group.tokens || block.first >= block.last) {
      if (++block.group_idx >= routing.num_groups) return Block{};
      block.group = routing.groups[block.group_idx];
      block.done = 0;
      shares.next(block.group, block.first, block.last);
    }
    const int left = block.group.tokens - block.done;
    block.num_tokens = left < args.block_tokens ? left : args.block_tokens;
    return block;
  };
  const auto pair_of = [&](const Block& block, int64 at) { return routing.pairs[block.group.first + block.done + at]; };
  const auto row_number = [&](const Block& block, int64 at) -> int64 {
    return Config::x_by_slot ? block.group.slot + block.done + at : pair_of(block, at) / args.top_k;
  };
  const auto row_of = [&](const Block& block, int64 at) {
    const int64 row = row_number(block, at);
    if constexpr (Config::x_prepared)
      return static_cast<const uint8*>(args.x_rows) + row * args.x_rows_stride * num_bytes(Config::x_dtype);
    else
      return static_cast<const uint8*>(args.hidden_states) + row * args.x_row_stride * num_bytes(Config::dtype);
  };
  const auto* const x_scale = static_cast<const float*>(args.x_scale);
  const int64 num_x_scales = Config::input_block_k == 0 ? 1 : ceil_div(args.hidden_size, Config::input_block_k);
  const int64 num_blocks = Config::block_k == 0 ? 1 : ceil_div(args.hidden_size, Config::block_k);
  const int64 row_parts = ceil_div(2 * hidden * (has_fixed_point<Config>() ? 2 : 1), kPartBytes);

  Block block = block_after({});
  if (block.num_tokens == 0) return;
  amx::configure();
  SoonWeights soon;
  const auto turns_of = [&](const Block& of, int64 first, int64 last) {
    return Turns<W>::of(first, last, hidden, of.num_tiles());
  };
  turns_of(block, block.first, block.last)
      .lines([&](int64 step) { return rows_of(block.group.expert, step); })
      .fetch(1 << 30);
  // The step before the present one, whose sums are not yet stored: sums[tile][32][16] become unit u of each tile.
  constexpr int units_per_step = step_rows / 2;
  const Sum* ready = nullptr;
  const Affine* ready_affine = s->affine;
  uint32* ready_tiles = nullptr;
  int64 ready_unit = 0;
  const auto unit_at = [](int64 u) {
    if constexpr (Config::inter_is_fp32) return 2 * u * amx::kTokens;
    else return inter_parts == 2 ? high_unit(u) : u * amx::kTokens;
  };
  Pace storing;
  const auto store_unit = [&](int64 i) {
    const int64 tile = i / units_per_step, u = i % units_per_step;
    store_activated<Config>(ready + tile * 2 * amx::kTileFloats, *ready_affine, int(u), int(tile) * amx::kTokens,
                            {args.swiglu_alpha, args.swiglu_limit},
                            ready_tiles + tile * inter_dwords + unit_at(ready_unit + u));
  };
  int parity = 0;
  while (block.num_tokens != 0) {
    const int num_tiles = block.num_tiles();
    const Block after = block_after(block);
    const int64 num_multiplications = multiplications<W>(num_tiles, hidden);
    // Tokens of the next block, not so early that weights push them out of the cache again.
    const int64 ask_from = block.last - ceil_div(kSoonBytes, 4 * amx::kRows * hidden);
    const int64 asking_steps = block.last - (ask_from < block.first ? block.first : ask_from);
    Pace asking(after.num_tokens * row_parts, asking_steps * num_multiplications);
    const auto ask = [&](int64 i) {
      const uint8* const part = row_of(after, i / row_parts) + i % row_parts * kPartBytes;
#pragma unroll
      for (int line = 0; line < kPartBytes; line += 64) prefetch(part + line);
    };
    if constexpr (scales_tokens<Config>()) storing.finish(store_unit);  // needs the scales of the tokens before
    for (int tile = 0; tile < num_tiles; ++tile) {
      const uint16* tokens[amx::kTokens];
      uint32* const tile_units = panel + tile * panel_dwords;
      for (int t = 0; t < amx::kTokens; ++t) {  // padding repeats the last token: its results are never read
        const int at = tile * amx::kTokens + t;
        const int there = at < block.num_tokens ? at : block.num_tokens - 1;
        tokens[t] = reinterpret_cast<const uint16*>(row_of(block, there));
        float scale = 1.0f;
        if constexpr (scales_sums<Config>()) {
          const float* const scales = x_scale + row_number(block, there) * num_x_scales;
          auto* const to = reinterpret_cast<float*>(tile_units + parts * panel_units * amx::kTokens) + t;
#pragma clang loop unroll(disable)
          for (int64 b = 0; b < num_blocks; ++b) to[b * amx::kTokens] = scales[BlocksOf<Config>::input_index(b)];
        } else if constexpr (Config::x_scaled) {
          scale = x_scale[row_number(block, there)];
        }
        if constexpr (Config::weight_on_input) {
          const int32 pair = pair_of(block, there);
          scale *= to_float<Config::weights_dtype>(
              static_cast<const element_t<Config::weights_dtype>*>(
                  args.topk_weights)[pair / args.top_k * args.topk_weights_row_stride + pair % args.top_k]);
        }
        if constexpr (scales_tokens<Config>())
          for (Affine& affine : s->affine) affine.token_scale[at] = scale;
      }
      if constexpr (has_fixed_point<Config>())  // a part follows the other in rows as it does in tiles
        pack_panel<S>(tokens, amx::kTokens, 2 * align_up(hidden, amx::kStep), 0, 2 * panel_units, tile_units);
      else if constexpr (parts == 2) pack_split(tokens, hidden, 0, panel_units, tile_units);
      else pack_panel<S>(tokens, amx::kTokens, hidden, 0, panel_units, tile_units);
    }
    uint32* const tiles = inter + (block.group.slot + block.done) / amx::kTokens * inter_dwords;
    if constexpr (takes_turns<W>()) storing.finish(store_unit);  // its sums are where the first ones go
    // What is read after this block: for its next tokens the same, else the next rows, perhaps another work-item's.
    int32 expert_after = block.group.expert;
    int64 step_after = block.is_last_of_group() ? block.last : block.first;
    const bool is_last_expert = block.group_idx + 1 == routing.num_groups;
    const bool has_after = step_after < num_steps || !is_last_expert;
    if (step_after == num_steps && has_after) expert_after = routing.groups[block.group_idx + 1].expert, step_after = 0;
    const auto rows_now = [&](int64 i) { return rows_of(block.group.expert, i); };
    const auto rows_after = [&](int64 i) { return rows_of(expert_after, i); };
    const Turns<W> turns_after = turns_of(block, step_after, num_steps);
    Turns<W> turns = turns_of(block, block.first, block.last);
    for (bool goes_on = true; goes_on;) {
      // GEMM.
      const int64 step = turns.step;
      const bool completes_step = turns.completes_step();
      float* const sums = s->sums[takes_turns<W>() ? turns.slot() * num_tiles : parity * kMaxTiles];
      const auto turn = Turn<W>::of(turns, rows_now);
      soon.plan(turns, rows_now, has_after ? &turns_after : nullptr, rows_after);
      goes_on = turns.next();
      amx_form<W>(turn, soon, panel, num_tiles, hidden, sums, s->form, [&] {
        if constexpr (!Config::few_pairs) {  // else memory decides, and prefetches of weights go first
          storing.turn(store_unit);
          if (step >= ask_from) asking.turn(ask);
        }
      });
      storing.finish(store_unit);
      if (!completes_step) continue;
      // Epilogue.
      Affine& affine = s->affine[parity];
      if constexpr (scales_rows<Config>()) {
        const auto rows = rows_of(block.group.expert, step);
        uint32 unused;  // zero points are subtracted where codes are staged
        for (int a = 0; a < 2; ++a)
          for (int n = 0; n < rows.num_rows[a]; ++n)
            rows.blocks[a].template read<typename W::W>(n, 0, 1, affine.row_scale + a * amx::kRows + n, &unused);
      }
      if constexpr (Config::has_bias) {
        const int64 i = step * step_rows;
        const int64 left = H::rows_per_i * (inner - i);
        for (int m = 0; m < H::matrices; ++m) {
          constexpr int rows = 2 * amx::kRows / H::matrices;
          const int there = left < rows ? int(left) : rows;
          float* const bias = affine.bias + m * rows;
          epilogue::copy_floats<Config::bias_dtype>(
              args.w1_bias, block.group.expert * H::all_rows(inner) + H::row(m, i, inner), there, bias);
          epilogue::fill(0.0f, rows - there, bias + there);  // so that the intermediate is zero past I
        }
      }
      ready = reinterpret_cast<const Sum*>(sums);
      ready_affine = &affine;
      ready_tiles = tiles;
      ready_unit = step * units_per_step;
      storing = Pace(num_tiles * units_per_step, multiplications<W>(num_tiles, turn.to - turn.from));
      parity ^= 1;
      if constexpr (H::gated && !Config::inter_is_fp32)
        if (step + 1 == num_steps && num_steps % 2 != 0)  // a tile of the second GEMM reads 32 elements
          for (int tile = 0; tile < num_tiles; ++tile)
            for (int u = units_per_step; u < 2 * units_per_step; ++u) {
              uint32* const unit = tiles + tile * inter_dwords + unit_at(ready_unit + u);
              for (int part = 0; part < inter_parts; ++part) store(unit + part * amx::kTokenTileUnits, S::units(0u));
            }
    }
    block = after;
  }
  storing.finish(store_unit);
  amx::release();
}

}  // namespace jitmoe::kernel

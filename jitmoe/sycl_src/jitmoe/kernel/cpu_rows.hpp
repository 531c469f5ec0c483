// SPDX-License-Identifier: MIT
// Prepares the input rows of a GEMM: gathers the columns of an expert's order, and quantizes.
//
//   x[r][c]   = from[row(r)][order[e][c]]                         (c without has_order)
//   scale     = input_scale(absmax) over input_block_k elements of x[r] (all without); or a given one
//   rows[r][c] = round(x[r][c] / scale), clamped to the range of `kind`
//
// of the first GEMM (x) or, with from_slots, of the second one (y).
//
// | tensor        | shape                | dtype       | layout, owner
// | hidden_states | [M][K]               | from_dtype  | x: row stride from_stride; caller's
// | inter         | [slots][K]           | from_dtype  | y: row stride from_stride; workspace, from cpu_gate_up
// | w1_k_order    | [E][K]               | int32       | if has_order; dense; caller's
// | a1_scale, a2_scale                   | fp32        | x, y: given scales, [E] or one (given_stride 0); if is_given
// | topk_ids, expert_map                 |             | read if few_pairs and by_slot; caller's
// | sorted_pairs, groups                 |             | read otherwise, if by_slot; workspace, from route_serial
// | x_rows, y_rows | [M or slots][K]     | to_dtype    | row stride rows_stride; workspace; int16: planes of bytes
// |               |                      |             | (cpu/round_input.hpp), zero past K up to a multiple of 64
// | x_scale, y_scale | [M or slots][blocks of input_block_k] | fp32 | dense; if is_quantized; workspace
// | x_correction, y_correction | [M or slots][blocks of block_k] | int32 | -128 times the block's sum; if to_dtype is int8
// |               |                      |             | and block_k is not 0
//
// Rows by slot have one row per pair, at its place in the intermediate (cpu/routing.hpp); otherwise one per token.
// nd_range: (num_items), work-groups of 1 work-item, which take every num_items-th row.
// Numerics: fp32; ties to even; input_scale and rounding in cpu/round_input.hpp. FP8 values are stored as bf16 or fp32, which
// hold them exactly.
#pragma once

#include <jitmoe/cpu/round_input.hpp>
#include <jitmoe/cpu/routing.hpp>
#include <jitmoe/cpu/scratch.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

struct CpuRowsArgs {
  const void* hidden_states = nullptr;
  const void* inter = nullptr;
  const void* w1_k_order = nullptr;
  const void* a1_scale = nullptr;
  const void* a2_scale = nullptr;
  const void* topk_ids;
  const void* expert_map;
  const void* sorted_pairs;
  const void* groups;
  void* x_rows = nullptr;
  void* x_scale = nullptr;
  void* x_correction = nullptr;
  void* y_rows = nullptr;
  void* y_scale = nullptr;
  void* y_correction = nullptr;
  int32 num_tokens;
  int32 top_k;
  int32 num_experts;
  int32 num_global_experts;
  int32 size;  // K
  int32 num_items;
  int64 from_stride;
  int64 rows_stride;
  int64 given_stride;
  int64 topk_ids_row_stride;
};

namespace rows {

using namespace jitmoe::cpu;  // NOLINT: this namespace holds one kernel

struct Scratch {
  FewPairs few;
};

}  // namespace rows

template <class Config> inline void cpu_rows(const CpuRowsArgs& args) {
  using namespace rows;
  constexpr int lanes = simd_lanes(Config::isa);
  using F = Vec<float, lanes>;
  using from_t = element_t<Config::from_dtype>;
  using to_t = element_t<Config::to_dtype>;
  (void)Config::ids_dtype, (void)Config::has_expert_map, (void)Config::kind, (void)Config::is_given;
  (void)Config::block_k, (void)Config::input_block_k;  // not always read
  auto* const s = (Scratch*)scratch<sizeof(Scratch)>();

  const int32 item = int32(nd_item<1>().get_group(0));
  const int64 size = args.size;
  constexpr bool second = Config::from_slots;
  const void* const all_from = second ? args.inter : args.hidden_states;
  void* const all_rows = second ? args.y_rows : args.x_rows;
  void* const all_scales = second ? args.y_scale : args.x_scale;
  void* const all_corrections = second ? args.y_correction : args.x_correction;
  const auto prepare = [&](int64 from_row, int64 row, int32 expert) {
    const auto* from = static_cast<const from_t*>(all_from) + from_row * args.from_stride;
    auto* to = static_cast<to_t*>(all_rows) + row * args.rows_stride;
    const int32* order = static_cast<const int32*>(args.w1_k_order) + expert * size;
    // One vector of x[r] from `at` on, where `count` elements are left; zero after them.
    const auto values = [&](int64 at, int64 count) {
      if constexpr (Config::has_order) {
        float gathered[lanes] = {};
#pragma clang loop unroll(disable)
        for (int i = 0; i < lanes && i < count; ++i) gathered[i] = to_float<Config::from_dtype>(from[order[at + i]]);
        return load<F>(gathered);
      } else {
        from_t tail[lanes];
        const from_t* whole = from + at;
        if (count < lanes) {
          copy_tail(from + at, count, tail, lanes);
          whole = tail;
        }
        return load_floats<Config::from_dtype, lanes>(whole);
      }
    };
    const auto store_values = [&](int64 at, int64 count, F value) {
      if constexpr (Config::to_dtype == DType::int16) {
        const auto number = __builtin_convertvector(value, Vec<int32, lanes>);
        auto* const plane = reinterpret_cast<uint8*>(to) + at / kPlane * (2 * kPlane) + at % kPlane;
        store(plane, __builtin_convertvector(number >> 8, Vec<uint8, lanes>));
        store(plane + kPlane, __builtin_convertvector(number, Vec<uint8, lanes>));
      } else {
        to_t block[lanes];
        if constexpr (Config::to_dtype == DType::int8) store(block, __builtin_convertvector(value, Vec<int8, lanes>));
        else store_floats<Config::to_dtype, lanes>(block, value);
        if (count >= lanes) __builtin_memcpy(to + at, block, sizeof(block));
        else
          for (int i = 0; i < count; ++i) to[at + i] = block[i];
      }
    };
    if constexpr (!Config::is_quantized) {
      for (int64 at = 0; at < size; at += lanes) store_values(at, size - at, values(at, size - at));
    } else {
      const int64 length = Config::input_block_k == 0 ? size : Config::input_block_k;
      const int64 num_scales = ceil_div(size, length);
      auto* const scales = static_cast<float*>(all_scales) + row * num_scales;
      for (int64 b = 0; b < num_scales; ++b) {
        const int64 first = b * length, end = first + length < size ? first + length : size;
        float scale = 1.0f;
        if constexpr (Config::is_given) {
          scale = static_cast<const float*>(second ? args.a2_scale : args.a1_scale)[expert * args.given_stride];
        } else {
          F most = F(0.0f);
          for (int64 at = first; at < end; at += lanes) {
            const F value = values(at, end - at);
            const F magnitude = value < 0.0f ? -value : value;
            most = magnitude > most ? magnitude : magnitude == magnitude ? most : magnitude;  // NaN stays
          }
          float absmax = 0.0f;
          for (int i = 0; i < lanes; ++i) absmax = most[i] > absmax || most[i] != most[i] ? most[i] : absmax;
          scale = input_scale<Config::kind, lanes>(F(absmax))[0];
        }
        F spoiled = F(0.0f);
        const int64 stored = Config::to_dtype == DType::int16 ? align_up(end, kPlane) : end;
        for (int64 at = first; at < stored; at += lanes) {
          const F value = values(at, end - at);
          spoiled = value == value ? spoiled : value;
          store_values(at, end - at, round_input<Config::kind, lanes>(value / scale));
        }
        for (int i = 0; i < lanes; ++i) scale = spoiled[i] == spoiled[i] ? scale : spoiled[i];  // integers have no NaN
        scales[b] = scale;
      }
      if constexpr (Config::to_dtype == DType::int8 && Config::block_k != 0) {
        auto* const corrections = static_cast<int32*>(all_corrections) + row * ceil_div(size, Config::block_k);
        for (int64 first = 0; first < size; first += Config::block_k) {
          const int64 end = first + Config::block_k < size ? first + Config::block_k : size;
          int32 sum = 0;
          for (int64 at = first; at < end; ++at) sum += to[at];
          corrections[first / Config::block_k] = -128 * sum;
        }
      }
    }
  };
  if constexpr (!Config::by_slot) {
    for (int64 t = item; t < args.num_tokens; t += args.num_items) prepare(t, t, 0);
  } else {
    const Routing routing = find_routing<Config>(args, s->few);
    int32 next = item;  // counted over all groups
    for (int32 g = 0, before = 0; g < routing.num_groups; ++g) {
      const Group group = routing.groups[g];
      for (; next < before + group.tokens; next += args.num_items) {
        const int32 at = next - before;
        const int64 row = group.slot + at;
        prepare(Config::from_slots ? row : routing.pairs[group.first + at] / args.top_k, row, group.expert);
      }
      before += group.tokens;
    }
  }
}

}  // namespace jitmoe::kernel

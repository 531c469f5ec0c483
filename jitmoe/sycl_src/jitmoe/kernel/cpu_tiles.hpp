// SPDX-License-Identifier: MIT
// Quantizes the intermediate of the MoE layer for the second GEMM's tiles, on CPUs with AMX:
//
//   scale[p]   = input_scale(absmax) over input_block_k elements of inter[p] (all without); or a given one of p's expert
//   rows[p][i] = round(inter[p][i] / scale[p]), clamped to the range of `kind`
//
// | tensor    | shape                   | dtype        | layout, owner
// | inter     | [slots / 16][I][16]     | fp32         | workspace, from cpu_gate_up_amx; I rounded up to 32
// | a2_scale  | [E] or one              | fp32         | if is_given; caller's, given_stride 1 or 0
// | groups    |                         |              | workspace, from route_serial
// | y_rows    | [slots / 16][I / n][16] | n of to_dtype in a dword: 4 int8 or 2 bf16 | workspace, token tiles
// |           |                         |              | (cpu/amx_form.hpp), zero past I; of int16 a tile of 4 high
// |           |                         |              | bytes in a dword, then one of 4 low bytes, in turn; if
// |           |                         |              | block_k is not 0, each followed by [blocks of block_k][16]
// |           |                         |              | scales, fp32
// | y_scale   | [slots]                 | fp32         | otherwise; workspace
//
// Lanes are tokens from reading to writing. Places that no token has are computed and never read.
// nd_range: (num_items), work-groups of 1 work-item, which take every num_items-th tile of 16 tokens.
// Numerics: fp32; ties to even; input_scale and rounding in cpu/round_input.hpp; bf16 hold FP8 and int8 exactly. A NaN makes its token's scale NaN.
#pragma once

#include <jitmoe/cpu/amx_form.hpp>
#include <jitmoe/cpu/round_input.hpp>
#include <jitmoe/cpu/routing.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

struct CpuTilesArgs {
  const void* inter;
  const void* a2_scale;
  const void* groups;
  void* y_rows;
  void* y_scale;
  int32 size;  // I
  int32 num_items;
  int64 given_stride;
};

template <class Config> inline void cpu_tiles(const CpuTilesArgs& args) {
  using namespace jitmoe::cpu;
  using F = Vec<float, amx::kTokens>;
  using U = Vec<uint32, amx::kTokens>;
  (void)Config::is_given;  // not always read
  constexpr bool has_planes = Config::to_dtype == DType::int16;
  constexpr int per_unit = has_planes || Config::to_dtype == DType::int8 ? 4 : 2;

  // Indices.
  const int32 item = int32(nd_item<1>().get_group(0));
  const auto* const groups = static_cast<const Group*>(args.groups);
  const int64 size = args.size;
  const int64 from_rows = align_up(size, amx::kStep);
  const int64 units = align_up(ceil_div(size, per_unit), 16);
  const int64 tile_units = has_planes ? 2 * units : units;
  const int64 num_blocks = Config::block_k == 0 ? 0 : ceil_div(size, Config::block_k);
  const int64 length = Config::input_block_k == 0 ? size : Config::input_block_k;  // of what shares a scale

  const auto quantize = [&](int64 tile, float given) {
    const float* const from = static_cast<const float*>(args.inter) + tile * from_rows * amx::kTokens;
    auto* const to = static_cast<uint32*>(args.y_rows) + tile * (tile_units + num_blocks) * amx::kTokens;
    for (int64 first = 0; first < size; first += length) {
      const int64 end = first + length < size ? first + length : size;
      F scale = given;
      F spoiled = 0.0f;  // NaN where a value is: integers have none
      if constexpr (!Config::is_given) {
        F most = 0.0f;
        for (int64 i = first; i < end; ++i) {
          const F value = load<F>(from + i * amx::kTokens);
          const F magnitude = value < 0.0f ? -value : value;
          most = magnitude > most ? magnitude : most;
        }
        scale = input_scale<Config::kind, amx::kTokens>(most);
      }
      const auto rounded = [&](int64 i) {
        const F value = load<F>(from + i * amx::kTokens);
        spoiled = value == value ? spoiled : value;
        return round_input<Config::kind, amx::kTokens>(value / scale);
      };
      const auto bits = [&](F value) -> U {
        if constexpr (Config::to_dtype == DType::bf16) return bf16_bits<amx::kTokens>(value);
        else return bit_cast<U>(__builtin_convertvector(value, Vec<int32, amx::kTokens>));
      };
      const int64 last_unit = end == size ? units : end / per_unit;
      for (int64 u = first / per_unit; u < last_unit; ++u) {
        constexpr uint32 mask = per_unit == 4 ? 0xff : 0xffff;
        U unit = 0u, high = 0u;
#pragma unroll
        for (int j = 0; j < per_unit; ++j)
          if (per_unit * u + j < size) {
            const U number = bits(rounded(per_unit * u + j));
            unit |= (number & mask) << (32 / per_unit * j);
            if constexpr (has_planes) high |= (number >> 8 & mask) << (32 / per_unit * j);
          }
        if constexpr (has_planes) {
          store(to + high_unit(u), high);
          store(to + high_unit(u) + amx::kTokenTileUnits, unit);
        } else {
          store(to + u * amx::kTokens, unit);
        }
      }
      scale = spoiled == spoiled ? scale : spoiled;
      if constexpr (Config::block_k == 0) store(static_cast<float*>(args.y_scale) + tile * amx::kTokens, scale);
      else
        for (int64 at = first; at < end; at += Config::block_k)
          store(to + (tile_units + at / Config::block_k) * amx::kTokens, scale);
    }
  };
  int32 next = item;  // tile, counted over all groups
  for (int32 g = 0, before = 0; g < groups[0].expert; ++g) {
    const Group group = groups[1 + g];
    const int32 tiles = int32(ceil_div(group.tokens, amx::kTokens));
    float given = 1.0f;
    if constexpr (Config::is_given) given = static_cast<const float*>(args.a2_scale)[group.expert * args.given_stride];
    for (; next < before + tiles; next += args.num_items) quantize(group.slot / amx::kTokens + next - before, given);
    before += tiles;
  }
}

}  // namespace jitmoe::kernel

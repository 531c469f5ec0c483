// SPDX-License-Identifier: MIT
// act(gate) * up, elementwise: out[r][i] = epilogue/activation.hpp of row r, or act(x) without up.
//
// | tensor | shape             | dtype | layout, owner
// | gate   | [R][I] or [R][2I] | dtype | row stride gate_row_stride; with separate and ungated [R][I], else both halves
// |        |                   |       | of a row: concatenated g0 g1 ... u0 u1 ..., interleaved g0 u0 g1 u1 ...
// | up     | [R][I]            | dtype | row stride up_row_stride; separate alone
// | out    | [R][I]            | dtype | row stride out_row_stride; may be gate itself
//
// nd_range: work-groups of 1 work-item, each for columns_per_item columns of rows_per_item rows.
// Numerics: fp32, rounded once.
#pragma once

#include <jitmoe/entry.hpp>
#include <jitmoe/epilogue/activation.hpp>

namespace jitmoe::kernel {

struct CpuActivateArgs {
  const void* gate;
  const void* up;
  void* out;
  int32 num_columns;
  int32 column_items;
  int32 columns_per_item;
  int64 num_rows;
  int64 rows_per_item;
  int64 gate_row_stride;
  int64 up_row_stride;
  int64 out_row_stride;
  float alpha;
  float limit;
};

template <int... l, class V> inline V even_elements(V a, V b, cpu::Sequence<int, l...>) {
  return __builtin_shufflevector(a, b, 2 * l...);
}
template <int... l, class V> inline V odd_elements(V a, V b, cpu::Sequence<int, l...>) {
  return __builtin_shufflevector(a, b, 2 * l + 1 ...);
}

template <class Config> inline void cpu_activate(const CpuActivateArgs& args) {
  using Element = element_t<Config::dtype>;
  constexpr int lanes = cpu::simd_lanes(Config::isa);
  constexpr bool interleaved = Config::gate_up == GateUp::interleaved;
  using F = cpu::Vec<float, lanes>;
  using Lanes = __make_integer_seq<cpu::Sequence, int, lanes>;
  const auto load = [](const Element* from) { return cpu::load_floats<Config::dtype, lanes>(from); };
  const epilogue::ActivationNumbers numbers{args.alpha, args.limit};

  const int64 item = nd_item<1>().get_group(0);
  const int32 first_column = int32(item % args.column_items) * args.columns_per_item;
  const int32 columns_left = args.num_columns - first_column;
  const int32 columns = columns_left < args.columns_per_item ? columns_left : args.columns_per_item;
  const int64 first_row = item / args.column_items * args.rows_per_item;
  const int64 end_row = first_row + args.rows_per_item < args.num_rows ? first_row + args.rows_per_item : args.num_rows;
  for (int64 row = first_row; row < end_row; ++row) {
    const int32 start = interleaved ? 2 * first_column : first_column;
    const Element* gates = static_cast<const Element*>(args.gate) + row * args.gate_row_stride + start;
    const Element* ups = gates + args.num_columns;
    if constexpr (Config::gate_up == GateUp::separate)
      ups = static_cast<const Element*>(args.up) + row * args.up_row_stride + first_column;
    Element* out = static_cast<Element*>(args.out) + row * args.out_row_stride + first_column;
    for (int32 i = 0; i < columns; i += lanes) {
      const Element *gate = gates + (interleaved ? 2 * i : i), *up = ups + i;
      Element* to = out + i;
      Element gate_tail[2 * lanes], up_tail[lanes], out_tail[lanes];
      const int32 count = columns - i;
      if (count < lanes) {
        cpu::copy_tail(gate, interleaved ? 2 * count : count, gate_tail, interleaved ? 2 * lanes : lanes);
        gate = gate_tail;
        if constexpr (Config::gate_up == GateUp::separate || Config::gate_up == GateUp::concatenated)
          cpu::copy_tail(up, count, up_tail, lanes);
        up = up_tail;
        to = out_tail;
      }
      F result;
      if constexpr (interleaved) {
        const F a = load(gate), b = load(gate + lanes);
        result = epilogue::activate_gated<Config::activation, lanes>(
            even_elements(a, b, Lanes{}), odd_elements(a, b, Lanes{}), numbers);
      } else if constexpr (Config::gate_up == GateUp::ungated) {
        result = epilogue::activate_ungated<Config::activation, lanes>(load(gate), numbers);
      } else {
        result = epilogue::activate_gated<Config::activation, lanes>(load(gate), load(up), numbers);
      }
      cpu::store_floats<Config::dtype, lanes>(to, result);
      if (count < lanes) cpu::copy_tail(out_tail, count, out + i, count);
    }
  }
}

}  // namespace jitmoe::kernel

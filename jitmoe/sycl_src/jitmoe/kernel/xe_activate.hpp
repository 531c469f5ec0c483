// SPDX-License-Identifier: MIT
// act(gate) * up, elementwise (tensors: kernel/cpu_activate.hpp; formulas: epilogue/xe_activation.hpp).
// nd_range: any number of work-groups; each work-item takes every n-th element, columns fastest.
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/entry.hpp>
#include <jitmoe/epilogue/xe_activation.hpp>

namespace jitmoe::kernel {

struct XeActivateArgs {
  const void* gate;
  const void* up;
  void* out;
  int32 num_columns;
  int64 num_rows;
  int64 gate_row_stride;
  int64 up_row_stride;
  int64 out_row_stride;
  float alpha;
  float limit;
};

template <class Config> inline void xe_activate(const XeActivateArgs& args) {
  using Element = element_t<Config::dtype>;
  const auto item = nd_item<1>();
  const epilogue::ActivationNumbers numbers{args.alpha, args.limit};
  // A work-group takes whole rows' pieces of its size, so that no work-item divides by the number of columns.
  const int32 local_size = int32(item.get_local_range(0));
  const int32 pieces = int32(ceil_div(args.num_columns, local_size));
  for (int64 piece = item.get_group(0); piece < args.num_rows * pieces; piece += item.get_group_range(0)) {
    const int64 row = piece / pieces;
    const int32 i = int32(piece % pieces) * local_size + int32(item.get_local_id(0));
    if (i >= args.num_columns) continue;
    const auto* gates = static_cast<const Element*>(args.gate) + row * args.gate_row_stride;
    float gate, up = 0.0f;
    if constexpr (Config::gate_up == GateUp::interleaved) {
      gate = to_float<Config::dtype>(gates[2 * i]);
      up = to_float<Config::dtype>(gates[2 * i + 1]);
    } else {
      gate = to_float<Config::dtype>(gates[i]);
      if constexpr (Config::gate_up == GateUp::concatenated) up = to_float<Config::dtype>(gates[args.num_columns + i]);
      if constexpr (Config::gate_up == GateUp::separate)
        up = to_float<Config::dtype>(static_cast<const Element*>(args.up)[row * args.up_row_stride + i]);
    }
    const float result = epilogue::xe_gated<Config>(gate, up, numbers);
    static_cast<Element*>(args.out)[row * args.out_row_stride + i] =
        arch::narrow<Config::emulated, Config::dtype>(result);
  }
}

}  // namespace jitmoe::kernel

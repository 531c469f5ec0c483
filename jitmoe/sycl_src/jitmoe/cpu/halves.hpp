// SPDX-License-Identifier: MIT
// Where the gate rows and the up rows of the first GEMM's weights are, as blocks of neighbouring rows.
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe::cpu {

template <GateUp gate_up> struct Halves {
  static constexpr bool interleaved = gate_up == GateUp::interleaved;
  static constexpr bool gated = gate_up != GateUp::ungated;
  static constexpr int matrices = gated && !interleaved ? 2 : 1;  // blocks: gates and ups, or all of them
  static constexpr int rows_per_i = interleaved ? 2 : 1;          // rows of a block per row of the intermediate

  // Rows of an expert, those of a second tensor included.
  static constexpr int64 all_rows(int64 intermediate_size) { return (gated ? 2 : 1) * intermediate_size; }

  // The row, counted over both tensors, at which block m of the intermediate's row i begins.
  static constexpr int64 row(int m, int64 i, int64 intermediate_size) { return m * intermediate_size + rows_per_i * i; }

  // Block m from the intermediate's row i on, in its tensor. to_row: elements between two rows.
  template <class Element>
  static const Element* block(const void* w1, const void* w1_up, int64 expert_offset, int64 to_row, int m, int64 i,
                              int64 intermediate_size) {
    const bool second = m == 1 && gate_up == GateUp::separate;
    const int64 first = second ? i : row(m, i, intermediate_size);
    return static_cast<const Element*>(second ? w1_up : w1) + expert_offset + first * to_row;
  }
};

}  // namespace jitmoe::cpu

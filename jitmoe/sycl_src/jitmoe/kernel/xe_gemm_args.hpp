// SPDX-License-Identifier: MIT
// Formulas and arguments of the two grouped GEMMs, with dpas (xe_gate_up, xe_down) and without (xe_vector_gate_up,
// xe_vector_down).
//
//   r = sorted pair (rows of one expert are neighbours), e = expert of r's row block,
//   p(r) = sorted_pairs[r] = token * top_k + slot, t(r) = p(r) / top_k
//
// First GEMM, the activation inside: inter[r] = act(g) * u, g and u = v(r) * x[t(r)] W_e^T + bias_e
//   v(r) = topk_weights[p(r)] if router_weight_on_input, else 1; activations: epilogue/xe_activation.hpp
//
// | tensor        | shape               | dtype  | layout, owner
// | hidden_states | [M][H]              | dtype  | row stride x_stride; read if rows are gathered; caller's
// | packed_x      | [pairs][x_stride]   | dtype  | rows by sorted pair, zeros after H; read otherwise; workspace;
// |               |                     |        | Quantized: fp16, int8 or fp32, and x_scale (kernel/xe_quantize.hpp)
// | w1            | [E][N][H] or        | dtype  | nk: row stride w_stride; kn: [E][H][N]; N = 2I: gate 0..I-1, up I..2I-1,
// |               |                     |        | or g0 u0 g1 u1 ... if interleaved; N = I if separate or ungated
// |               |                     |        | Quantized: codes, w_scale, w_zero_point (mainloop/xe_scales.hpp)
// | w1_up         | as w1               | dtype  | the up rows if separate
// | w1_bias       | [E][rows]           | bias_dtype | ordered like w1's rows, w1_up's after them; read if has_bias
// | topk_weights  | [M][k]              | topk_weights_dtype | row stride topk_weights_row_stride; if router_weight_on_input
// | sorted_pairs  | [pairs]             | int32  | workspace
// | blocks        | [num_blocks][4]     | int32  | workspace; at most as many rows each as a work-group takes
// | inter         | [pairs][inter_pitch]| dtype  | workspace; fp32 if fp32_inter; dpas: columns I..inter_pitch-1 become zeros
//
// Second GEMM, the routing weight inside: partial[p(r)] = v(r) * (inter[r] Wdown_e^T + bias_e)[columns]
//   columns = [first_column, first_column + num_columns)
//   v(r) = topk_weights[p(r)]; 1 if the first GEMM has applied it (!weighted)
//   Rows go back to the order of the pairs here, for free: each lane stores its own token's columns.
//
// | tensor       | shape                  | dtype            | layout, owner
// | inter        | [pairs][inter_pitch]   | dtype            | workspace; dpas: zeros after column I
// |              |                        |                  | Quantized: as packed_x, and x_scale
// | w2           | [E][H][I] or           | dtype            | nk: row stride w_stride; kn: [E][I][H]
// |              |                        |                  | Quantized: as w1
// | w2_bias      | [E][H]                 | bias_dtype       | read if has_bias; caller's
// | topk_weights | [M][k]                 | topk_weights_dtype | row stride topk_weights_row_stride, caller's
// | partial      | [pairs][partial_pitch] | fp32             | workspace; rows of pairs without an expert stay unwritten
// | sorted_pairs, blocks: as above
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe::kernel {

struct XeGateUpArgs {
  const void* hidden_states;
  const void* packed_x;
  const void* w1;
  const void* w1_up;
  const void* w1_bias;
  const void* topk_weights;
  const void* sorted_pairs;
  const void* blocks;
  const void* num_blocks;
  void* inter;
  int32 hidden_size;
  int32 intermediate_size;
  int32 top_k;
  int32 inter_pitch;
  int64 x_stride;
  int64 w_expert_stride;
  int64 w_stride;
  int64 topk_weights_row_stride;
  float swiglu_alpha;
  float swiglu_limit;
  // Of quantized weights.
  const void* w_scale = nullptr;
  const void* w_zero_point = nullptr;
  const void* x_scale = nullptr;
  int32 block_n = 0;
  int32 x_blocks = 0;
  int64 scale_expert_stride = 0;
  int64 scale_n_stride = 0;
  int64 scale_k_stride = 0;
  int64 zero_expert_stride = 0;
  int64 zero_n_stride = 0;
  int64 zero_k_stride = 0;
};

struct XeDownArgs {
  const void* inter;
  const void* w2;
  const void* w2_bias;
  const void* topk_weights;
  const void* sorted_pairs;
  const void* blocks;
  const void* num_blocks;
  void* partial;
  int32 hidden_size;
  int32 intermediate_size;
  int32 top_k;
  int32 first_column;
  int32 num_columns;
  int32 partial_pitch;
  int64 inter_pitch;
  int64 w_expert_stride;
  int64 w_stride;
  int64 topk_weights_row_stride;
  // Of quantized weights.
  const void* w_scale = nullptr;
  const void* w_zero_point = nullptr;
  const void* x_scale = nullptr;
  int32 block_n = 0;
  int32 x_blocks = 0;
  int64 scale_expert_stride = 0;
  int64 scale_n_stride = 0;
  int64 scale_k_stride = 0;
  int64 zero_expert_stride = 0;
  int64 zero_n_stride = 0;
  int64 zero_k_stride = 0;
};

}  // namespace jitmoe::kernel

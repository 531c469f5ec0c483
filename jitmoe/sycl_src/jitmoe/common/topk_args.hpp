// SPDX-License-Identifier: MIT
// Arguments of the routing kernels (kernel/cpu_topk.hpp, kernel/xe_topk.hpp and their capped second steps): experts and
// weights from router logits. The steps are those of jitmoe.Routing (jitmoe/problems/routing.py).
//
// | tensor          | shape        | dtype           | layout, owner
// | router_logits   | [M][E]       | dtype           | row stride logits_row_stride, caller's
// | correction_bias | [E]          | bias_dtype      | dense, read if has_bias, caller's
// | topk_weights    | [M][slots]   | fp32            | row stride weights_row_stride, caller's or workspace
// | topk_ids        | [M][slots]   | ids_dtype       | row stride ids_row_stride, caller's or workspace
// | room            | [E]          | int32           | CPU, capped: how many more tokens each expert takes; workspace
//
// slots = top_k + num_shared_experts. Numerics: fp32 throughout; see epilogue/scoring.hpp.
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe {

struct TopKArgs {
  const void* router_logits;
  const void* correction_bias;
  void* topk_weights;
  void* topk_ids;
  int32 num_tokens;
  int32 num_shared_experts;
  int32 capacity;
  int64 logits_row_stride;
  int64 weights_row_stride;
  int64 ids_row_stride;
  float temperature;
  float renormalize_epsilon;
  float renormalize_min;
  float jitter_eps;
  float scaling_factor;
  float shared_expert_weight;
  // On CPUs.
  void* room = nullptr;
  int32 tokens_per_item = 0;
  // On GPUs.
  int32 num_experts = 0;
};

}  // namespace jitmoe

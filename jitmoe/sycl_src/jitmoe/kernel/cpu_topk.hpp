// SPDX-License-Identifier: MIT
// Experts and weights from router logits; the steps are those of jitmoe.Routing (jitmoe/problems/routing.py).
//
// | tensor          | shape        | dtype           | layout, owner
// | router_logits   | [M][E]       | dtype           | row stride logits_row_stride, caller's
// | correction_bias | [E]          | bias_dtype      | dense, read if has_bias, caller's
// | topk_weights    | [M][slots]   | fp32            | row stride weights_row_stride, caller's or workspace
// | topk_ids        | [M][slots]   | ids_dtype       | row stride ids_row_stride, caller's or workspace
//
// slots = top_k + num_shared_experts. nd_range: work-groups of 1 work-item, each for tokens_per_item tokens.
// Numerics: fp32 throughout; see epilogue/scoring.hpp.
#pragma once

#include <jitmoe/cpu/topk.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

using CpuTopkArgs = cpu::TopKArgs;

template <class Config> inline void cpu_topk(const CpuTopkArgs& args) {
  const int64 first = int64(nd_item<1>().get_group(0)) * args.tokens_per_item;
  const int64 end = first + args.tokens_per_item < args.num_tokens ? first + args.tokens_per_item : args.num_tokens;
  cpu::TopK<Config> row;
  for (int64 token = first; token < end; ++token) {
    row.template choose<false>(args, token, nullptr);
    row.write(args, token);
  }
}

}  // namespace jitmoe::kernel

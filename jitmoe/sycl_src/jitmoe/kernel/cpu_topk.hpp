// SPDX-License-Identifier: MIT
// Experts and weights from router logits (tensors and numerics: common/topk_args.hpp).
// nd_range: work-groups of 1 work-item, each for tokens_per_item tokens.
#pragma once

#include <jitmoe/cpu/topk.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

template <class Config> inline void cpu_topk(const TopKArgs& args) {
  const int64 first = int64(nd_item<1>().get_group(0)) * args.tokens_per_item;
  const int64 end = first + args.tokens_per_item < args.num_tokens ? first + args.tokens_per_item : args.num_tokens;
  cpu::TopK<Config> row;
  for (int64 token = first; token < end; ++token) {
    row.template choose<false>(args, token, nullptr);
    row.write(args, token);
  }
}

}  // namespace jitmoe::kernel

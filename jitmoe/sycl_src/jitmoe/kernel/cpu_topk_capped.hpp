// SPDX-License-Identifier: MIT
// Second step of capped routing: serves tokens in order and moves those whose experts are full
// (tensors: common/topk_args.hpp).
//
// cpu_topk has given every token its best experts. A token all of whose experts have room keeps them; any other chooses
// again, from its logits, among the experts with room. That is the same as choosing in order from the start.
//
// nd_range: one work-item, because every token depends on those before it.
#pragma once

#include <jitmoe/cpu/topk.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

template <class Config> inline void cpu_topk_capped(const TopKArgs& args) {
  using Id = element_t<Config::ids_dtype>;
  auto* room = static_cast<int32*>(args.room);
  for (int e = 0; e < Config::num_experts; ++e) room[e] = args.capacity;
  cpu::TopK<Config> row;
  for (int64 token = 0; token < args.num_tokens; ++token) {
    const Id* ids = static_cast<const Id*>(args.topk_ids) + token * args.ids_row_stride;
    bool all_have_room = true;
    for (int j = 0; j < Config::top_k; ++j) all_have_room &= room[ids[j]] > 0;
    if (!all_have_room) {
      row.template choose<true>(args, token, room);
      row.write(args, token);
    }
    for (int j = 0; j < Config::top_k; ++j)
      if (ids[j] >= 0) --room[ids[j]];
  }
}

}  // namespace jitmoe::kernel

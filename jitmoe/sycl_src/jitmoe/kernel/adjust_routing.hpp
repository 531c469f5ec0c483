// SPDX-License-Identifier: MIT
// Routing that a caller has already done, made ready for the experts: weights divided by their sum if asked, shared
// experts appended to every token.
//
//   weights[t][j] = topk_weights[t][j] / s,  s = 1, or with Config::renormalize the sum of the k weights, ascending j
//   ids[t][j]     = topk_ids[t][j], -1 where it does not fit 32 bits;            j < k
//   weights[t][k + s] = shared_weights[t][s], 1 without them;  ids[t][k + s] = first_shared + s
//
// | tensor         | shape    | dtype           | layout, owner
// | topk_weights   | [M][k]   | weights_dtype   | row stride topk_weights_row_stride; caller's
// | topk_ids       | [M][k]   | ids_dtype       | row stride topk_ids_row_stride; caller's
// | shared_weights | [M][S]   | shared_dtype    | row stride shared_row_stride; caller's; null without
// | weights, ids   | [M][k+S] | fp32, int32     | dense; workspace
//
// nd_range: (items), any work-group size; an item takes tokens_per_item neighbouring tokens. CPU and GPU alike: a few
// loads per token. Numerics: fp32; a sum of 0 gives infinities and NaNs, as dividing by it does in torch.
#pragma once

#include <jitmoe/arch/convert.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

struct AdjustRoutingArgs {
  const void* topk_weights;
  const void* topk_ids;
  const void* shared_weights;
  void* weights;
  void* ids;
  int32 num_tokens;
  int32 top_k;
  int32 num_shared;
  int32 first_shared;
  int32 tokens_per_item;
  int64 topk_weights_row_stride;
  int64 topk_ids_row_stride;
  int64 shared_row_stride;
};

template <class Config> inline void adjust_routing(const AdjustRoutingArgs& args) {
  const int64 begin = int64(nd_item<1>().get_global_id(0)) * args.tokens_per_item;
  const int64 end = begin + args.tokens_per_item < args.num_tokens ? begin + args.tokens_per_item : args.num_tokens;
  const int64 slots = args.top_k + args.num_shared;
  const auto* given = static_cast<const element_t<Config::ids_dtype>*>(args.topk_ids);
  for (int64 t = begin; t < end; ++t) {
    const int64 row = t * args.topk_weights_row_stride;
    float* weights = static_cast<float*>(args.weights) + t * slots;
    int32* ids = static_cast<int32*>(args.ids) + t * slots;
    float sum = 0.0f;
    for (int32 j = 0; j < args.top_k; ++j) {
      const float weight = arch::read_float<Config::weights_dtype>(args.topk_weights, row + j);
      const int64 id = given[t * args.topk_ids_row_stride + j];
      weights[j] = weight;
      ids[j] = id == int32(id) ? int32(id) : -1;
      sum += weight;
    }
    if constexpr (Config::renormalize)
      for (int32 j = 0; j < args.top_k; ++j) weights[j] /= sum;
    for (int32 s = 0; s < args.num_shared; ++s) {
      weights[args.top_k + s] = 1.0f;
      if constexpr (Config::has_shared_weights)
        weights[args.top_k + s] =
            arch::read_float<Config::shared_dtype>(args.shared_weights, t * args.shared_row_stride + s);
      ids[args.top_k + s] = args.first_shared + s;
    }
  }
}

}  // namespace jitmoe::kernel

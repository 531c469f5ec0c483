// SPDX-License-Identifier: MIT
// The routing weight of a pair (token, slot): topk_weights[pair / k][pair % k], any float type, as fp32.
#pragma once

#include <jitmoe/arch/convert.hpp>

namespace jitmoe::epilogue {

template <DType dtype>
inline float routing_weight(const void* topk_weights, int32 pair, int32 top_k, int64 row_stride) {
  return arch::read_float<dtype>(topk_weights, pair / top_k * row_stride + pair % top_k);
}

}  // namespace jitmoe::epilogue

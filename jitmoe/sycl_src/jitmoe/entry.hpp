// SPDX-License-Identifier: MIT
// What every rendered translation unit includes first: the two light SYCL headers and the entry-point properties.
//
// <sycl/sycl.hpp> never appears in a device translation unit: it costs 1.3-1.7 s of compile time, these two 0.12 s.
// Kernels get their ids from jitmoe::nd_item<D>().
#pragma once

#include <sycl/ext/oneapi/free_function_kernel_properties.hpp>
#include <sycl/ext/oneapi/free_function_queries.hpp>

#include <jitmoe/common/types.hpp>

#define JITMOE_ND_RANGE(dimensions) \
  SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((sycl::ext::oneapi::experimental::nd_range_kernel<dimensions>))
#define JITMOE_SUB_GROUP_SIZE(size) \
  SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((sycl::ext::oneapi::experimental::sub_group_size<size>))
#define JITMOE_WORK_GROUP_SIZE_1D(size) \
  SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((sycl::ext::oneapi::experimental::work_group_size<size>))
#define JITMOE_WORK_GROUP_SIZE_2D(size) \
  SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((sycl::ext::oneapi::experimental::work_group_size<1, size>))

namespace jitmoe {
template <int dimensions> inline auto nd_item() {
  return sycl::ext::oneapi::this_work_item::get_nd_item<dimensions>();
}
}  // namespace jitmoe

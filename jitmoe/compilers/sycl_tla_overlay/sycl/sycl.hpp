// SPDX-License-Identifier: MIT
// Stands in for <sycl/sycl.hpp> where sycl-tla includes it: the few SYCL names that its headers mention, from light
// headers. The whole of SYCL costs 2 s per kernel. A name that is missing here is a compile error, not a wrong kernel.
#pragma once

#include <complex>
#include <math.h>

#include <sycl/atomic_ref.hpp>
#include <sycl/ext/oneapi/bfloat16.hpp>
#include <sycl/ext/oneapi/free_function_kernel_properties.hpp>
#include <sycl/ext/oneapi/free_function_queries.hpp>
#include <sycl/half_type.hpp>

namespace sycl {
inline namespace _V1 {
namespace native {
float exp(float);  // mentioned, never called here
}
namespace ext::oneapi::experimental {
template <class... Values> inline int printf(const char*, Values...) { return 0; }
}  // namespace ext::oneapi::experimental
}  // namespace _V1
}  // namespace sycl

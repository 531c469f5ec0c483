// SPDX-License-Identifier: MIT
// Stands in for sycl-tla's <cutlass/gpu_generics.h>: wrappers of group functions and of a host runtime, of which CuTe's
// kernels for Xe use nothing.
#pragma once

#include <sycl/sycl.hpp>

#include <cute/util/compat.hpp>

// SPDX-License-Identifier: MIT
// Stands in for sycl-tla's <cute/util/compat.hpp>, which drags eight kernels of its own into every image. CuTe's
// debugging helpers mention these positions; no kernel here calls them, so they have no definition.
#pragma once

#include <sycl/sycl.hpp>

namespace compat {
struct Position {
  static unsigned long x();
  static unsigned long y();
  static unsigned long z();
};
struct global_id : Position {};
struct local_id : Position {};
struct local_range : Position {};
struct work_group_id : Position {};
struct work_group_range : Position {};
}  // namespace compat

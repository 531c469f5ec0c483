// SPDX-License-Identifier: MIT
// Second grouped GEMM with the routing weight inside, its main loop written with CuTe: mainloop/cutlass.hpp.
//
// Formula and tensors: kernel/xe_gemm_args.hpp. nd_range, SLM, GRF mode, numerics, walk and epilogue:
// kernel/xe_down.hpp.
// Needs: Config::weights == Config::tokens == block2d at sub-group size 16, and the headers of sycl-tla.
#pragma once

#include <jitmoe/kernel/xe_down.hpp>
#include <jitmoe/mainloop/cutlass.hpp>

namespace jitmoe::kernel {

template <class Config> inline void cutlass_down([[maybe_unused]] const XeDownArgs& args) {
#ifdef __SYCL_DEVICE_ONLY__  // the host pass of a two-pass compiler only needs the name
  xe_down<Config, mainloop::Cutlass<Config>>(args);
#endif
}

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// Work-group local memory as scratch of a one-work-item work-group: close to the core, reused by every work-group.
#pragma once

#include <jitmoe/common/types.hpp>

#ifdef __SYCL_DEVICE_ONLY__
extern "C" SYCL_EXTERNAL __attribute__((opencl_local)) unsigned char* __sycl_allocateLocalMemory(
    __SIZE_TYPE__ size, __SIZE_TYPE__ alignment);
#endif

namespace jitmoe::cpu {

// num_bytes of local memory, 64-byte aligned. One call per kernel, num_bytes at most 256 KiB (the CPU device's limit).
template <int num_bytes> inline unsigned char* scratch() {
  static_assert(num_bytes <= 256 * 1024, "the SYCL CPU device has 256 KiB of local memory");
#ifdef __SYCL_DEVICE_ONLY__
  return (unsigned char*)__sycl_allocateLocalMemory(num_bytes, 64);
#else
  return nullptr;
#endif
}

}  // namespace jitmoe::cpu

// SPDX-License-Identifier: MIT
// Counters in global memory that all work-groups of a device share.
//
// SPIR-V's atomics are portable, so there is one body for GPUs and for the CPU device. On Xe they are messages to the
// last-level cache ("atomic.ugm"); acquire and release add the fence that empties or drops the Xe-core's own cache.
// Scope Device = 1. MemorySemantics: Relaxed = 0, Acquire = 0x2, Release = 0x4, AcquireRelease = 0x8, and
// CrossWorkgroupMemory = 0x200 says that global memory is what they order.
#pragma once

#include <jitmoe/arch/sub_group.hpp>

namespace jitmoe::arch {

enum class Order { relaxed = 0, acquire = 0x202, release = 0x204, acquire_release = 0x208 };

// Adds to a counter; returns what it held before.
template <Order order> inline int32 atomic_add(int32* counter, int32 value) {
#ifdef __SYCL_DEVICE_ONLY__
  return __spirv_AtomicIAdd((JITMOE_GLOBAL int32*)counter, 1, int32(order), value);
#else
  return 0;
#endif
}

template <Order order> inline int32 atomic_load(int32* counter) {
#ifdef __SYCL_DEVICE_ONLY__
  return __spirv_AtomicLoad((JITMOE_GLOBAL int32*)counter, 1, int32(order));
#else
  return 0;
#endif
}

template <Order order> inline void atomic_store(int32* counter, int32 value) {
#ifdef __SYCL_DEVICE_ONLY__
  __spirv_AtomicStore((JITMOE_GLOBAL int32*)counter, 1, int32(order), value);
#endif
}

// Makes what this sub-group has written to global memory visible to the whole device ("fence.ugm").
inline void device_fence() {
#ifdef __SYCL_DEVICE_ONLY__
  __spirv_MemoryBarrier(1, int32(Order::release));
#endif
}

}  // namespace jitmoe::arch

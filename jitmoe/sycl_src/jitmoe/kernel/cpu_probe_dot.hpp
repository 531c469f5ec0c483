// SPDX-License-Identifier: MIT
// Multiply-adds from registers only, as many at once as the CPU takes: the limit that a compute-bound kernel is
// measured against (tools/bench_moe.py).
//
// | tensor | shape    | dtype | layout, owner
// | out    | [groups] | fp32  | the sum of everything computed
//
// nd_range: (groups), work-groups of 1 work-item. A group does steps * kChains accumulations of one register, or, for
// bf16 with AMX, steps * 4 multiplications of tiles that stay in their registers.
#pragma once

#include <jitmoe/cpu/amx.hpp>
#include <jitmoe/cpu/simd.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

struct CpuProbeDotArgs {
  void* out;
  int32 steps;
};

inline void probe_tiles(const CpuProbeDotArgs& args, float& sum) {
  using namespace jitmoe::cpu;
  alignas(64) uint32 operand[amx::kTokenTileUnits] = {};
  alignas(64) float sums[4 * amx::kTileFloats];
  const auto* rows = reinterpret_cast<const uint8*>(operand);
  amx::configure();
  amx::zero_sums<2>();
  amx::multiply<amx::Dot::bf16, 2>(rows, rows, 64, operand, 0);
  for (int32 step = 0; step < args.steps; ++step) amx::multiply_again();
  amx::store_sums<2>(sums);
  amx::release();
  sum = sums[0];
}

template <class Config> inline void cpu_probe_dot(const CpuProbeDotArgs& args) {
  if constexpr (Config::isa == CpuIsa::amx_bf16 && Config::dtype == DType::bf16) {
    probe_tiles(args, static_cast<float*>(args.out)[nd_item<1>().get_group(0)]);
    return;
  }
  using S = jitmoe::cpu::Simd<Config::isa, Config::dtype>;
  constexpr int kChains = 12;  // independent sums: more than latency times throughput, no more than 16 registers hold
  const int64 group = nd_item<1>().get_group(0);
  typename S::floats sums[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) sums[i] = typename S::floats(float(i));
  // 0.5 as a float and as each half of a pair, times what is 1.0 but not known to the compiler. No denormals: they are
  // slow on some CPUs.
  const uint32 half = S::pairs ? 0x3f003f00u : 0x3f000000u;
  const auto a = typename S::units(half), b = typename S::units(half | uint32(args.steps < 0));
  for (int32 step = 0; step < args.steps; ++step)
#pragma unroll
    for (int i = 0; i < kChains; ++i) S::accumulate(sums[i], a, b);
  typename S::floats all = sums[0];
#pragma unroll
  for (int i = 1; i < kChains; ++i) all += sums[i];
  const auto two = jitmoe::cpu::fold<S::lanes, 2>(all);
  static_cast<float*>(args.out)[group] = two.x + two.y;
}

}  // namespace jitmoe::kernel

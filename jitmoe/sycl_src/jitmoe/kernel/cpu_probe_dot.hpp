// SPDX-License-Identifier: MIT
// Multiply-adds from registers only, as many at once as the CPU takes: the limit that a compute-bound kernel is
// measured against (tools/bench_moe.py).
//
// | tensor | shape    | dtype | layout, owner
// | out    | [groups] | fp32  | the sum of everything computed
//
// nd_range: (groups), work-groups of 1 work-item. A group does steps * kChains accumulations of one register, or, where
// isa has tiles of dtype, steps * 4 multiplications of tiles that stay in their registers.
#pragma once

#include <jitmoe/cpu/amx.hpp>
#include <jitmoe/cpu/simd.hpp>
#include <jitmoe/entry.hpp>

namespace jitmoe::kernel {

struct CpuProbeDotArgs {
  void* out;
  int32 steps;
};

template <cpu::amx::Dot dot> inline void probe_tiles(const CpuProbeDotArgs& args, float& sum) {
  using namespace jitmoe::cpu;
  alignas(64) uint32 operand[amx::kTokenTileUnits] = {};
  alignas(64) float sums[4 * amx::kTileFloats];
  const auto* rows = reinterpret_cast<const uint8*>(operand);
  amx::configure();
  amx::zero_sums<2>();
  amx::multiply<dot, 2>(rows, rows, 64, operand, 0);
  for (int32 step = 0; step < args.steps; ++step) amx::multiply_again<dot>();
  amx::store_sums<2>(sums);
  amx::release();
  sum = sums[0];
}

template <class S> inline void probe_vectors(const CpuProbeDotArgs& args) {
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
  const auto two = cpu::fold<S::lanes, 2>(all);
  static_cast<float*>(args.out)[group] = two.x + two.y;
}

template <class Config> inline void cpu_probe_dot(const CpuProbeDotArgs& args) {
  using cpu::amx::Dot;
  constexpr bool bf16_tiles = Config::dtype == DType::bf16 && cpu::has_tiles(Config::isa);
  constexpr bool fp16_tiles = Config::dtype == DType::fp16 && Config::isa == CpuIsa::amx_fp16;
  if constexpr (bf16_tiles || fp16_tiles) {
    probe_tiles<fp16_tiles ? Dot::fp16 : Dot::bf16>(args, static_cast<float*>(args.out)[nd_item<1>().get_group(0)]);
  } else {
    probe_vectors<cpu::Simd<Config::isa, Config::dtype>>(args);
  }
}

}  // namespace jitmoe::kernel

// SPDX-License-Identifier: MIT
// Input rows of a GEMM with quantized weights: packed[r][p] = rounded(source[row(r)][k(p)] / scale[r][block]), zeros after K.
//
//   x:     row(r) = sorted_pairs[r] / top_k of hidden_states;  inter: row(r) = r of the first GEMM's results
//   k(p):  p; if permuted, within each 32: the even k first, then the odd ones (mainloop/xe_codes_a.hpp); if has_k_order,
//          order[e(r)] of that
//   scale: with input_quant: absmax of the row or block / largest of the format, 1 if that is 0, or given ones;
//          rounded = to the format's nearest number, ties to even, within its range
//          without: the power of two that brings absmax to 2^14..2^15 if packed is fp16 (bf16 numbers down to 2^-31 of
//          absmax stay exact), 1 if it is fp32; rounded = fp16 or as is
//
// | tensor         | shape                  | dtype | layout, owner
// | source         | [M][K] or [pairs][K]   | dtype | row stride source_stride
// | sorted_pairs   | [pairs]                | int32 | workspace; x only
// | expert_offsets | [E + 1]                | int32 | workspace; the last one is the number of rows
// | order          | [E][K]                 | int32 | caller's; read if has_k_order
// | given          | [1] or [E]             | fp32  | caller's; read if has_scale, at e * given_stride
// | packed         | [pairs][packed_pitch]  | to    | workspace: fp16, fp32 or int8
// | scale          | [pairs][blocks]        | fp32  | workspace; blocks = K / block_k, or 1
//
// nd_range: any number of work-groups of whole sub-groups; sub-group s takes rows s, s + all, s + 2 all, ...
// NaNs and infinities in a row make its results NaN or infinite.
#pragma once

#include <jitmoe/arch/convert.hpp>

namespace jitmoe::kernel {

struct XeQuantizeArgs {
  const void* source;
  const void* sorted_pairs;
  const void* expert_offsets;
  const void* order;
  const void* given;
  void* packed;
  void* scale;
  int32 k;
  int32 top_k;
  int32 num_experts;
  int32 packed_pitch;
  int32 given_stride;
  int64 source_stride;
};

// v to `bits` mantissa bits, ties to even; below 2^least_exponent in steps of 2^(least_exponent - bits).
template <int32 bits, int32 least_exponent> inline float round_mantissa(float v) {
  const uint32 raw = bit_cast<uint32>(v);
  if ((raw & 0x7fffffffu) < uint32(least_exponent + 127) << 23) {
    const float magic = bit_cast<float>(uint32(least_exponent - bits + 127 + 23) << 23) * 1.5f;
    return v + magic - magic;
  }
  constexpr uint32 kDropped = 23 - bits;
  return bit_cast<float>((raw + (1u << (kDropped - 1)) - 1 + (raw >> kDropped & 1)) & ~((1u << kDropped) - 1));
}

template <class Config> constexpr float kLargestInput =
    Config::input_quant == InputQuant::int8 ? 127.0f : Config::input_quant == InputQuant::e4m3 ? 448.0f : 57344.0f;

template <class Config> inline float round_input(float v) {
  constexpr float kLargest = kLargestInput<Config>;
  v = v > kLargest ? kLargest : v < -kLargest ? -kLargest : v;
  if constexpr (Config::input_quant == InputQuant::int8) return v + 12582912.0f - 12582912.0f;  // 1.5 * 2^23
  else if constexpr (Config::input_quant == InputQuant::e4m3) return round_mantissa<3, -6>(v);
  else return round_mantissa<2, -14>(v);
}

template <class Config> inline void xe_quantize(const XeQuantizeArgs& args) {
  constexpr int32 kSimd = Config::simd;
  using Source = element_t<Config::dtype>;
  const auto item = nd_item<1>();
  const int32 lane = arch::lane_id();
  const int32 first = int32(item.get_global_id(0)) / kSimd, step = int32(item.get_global_range(0)) / kSimd;
  const auto* offsets = static_cast<const int32*>(args.expert_offsets);
  const int32 rows = offsets[args.num_experts];
  const int32 block_k = Config::block_k == 0 ? args.k : Config::block_k;
  const int32 blocks = Config::block_k == 0 ? 1 : int32(ceil_div(args.k, block_k));

  for (int32 r = first; r < rows; r += step) {
    const int64 row = Config::gathered ? static_cast<const int32*>(args.sorted_pairs)[r] / args.top_k : r;
    const auto* source = static_cast<const Source*>(args.source) + row * args.source_stride;
    int32 expert = 0;
    if constexpr (Config::has_k_order || Config::has_scale) {
      int32 end = args.num_experts;  // offsets[expert] <= r < offsets[end]
      while (end - expert > 1) {
        const int32 middle = (expert + end) / 2;
        if (offsets[middle] <= r) expert = middle;
        else end = middle;
      }
    }
    [[maybe_unused]] const int32* order = static_cast<const int32*>(args.order);
    if constexpr (Config::has_k_order) order += int64(expert) * args.k;

    for (int32 b = 0; b < blocks; ++b) {
      const int32 begin = b * block_k, end = begin + block_k < args.k ? begin + block_k : args.k;
      float absmax = 0.0f;
      if constexpr (!Config::has_scale && (Config::has_input_quant || Config::to == DType::fp16)) {
        const auto larger = [](float a, float c) { return c > a || c != c ? c : a; };  // a NaN wins
        _Pragma("unroll(4)") for (int32 c = begin + lane; c < end; c += kSimd) {
          const float value = to_float<Config::dtype>(source[c]);
          absmax = larger(absmax, value < 0.0f ? -value : value);
        }
        _Pragma("unroll") for (int32 distance = kSimd / 2; distance > 0; distance /= 2)
          absmax = larger(absmax, arch::shuffle(absmax, lane ^ distance));
      }
      float scale = 1.0f;
      float inverse = 1.0f;
      if constexpr (Config::has_scale) {
        scale = static_cast<const float*>(args.given)[expert * args.given_stride];
      } else if constexpr (Config::has_input_quant) {
        scale = absmax == 0.0f ? 1.0f : absmax / kLargestInput<Config>;
      } else if constexpr (Config::to == DType::fp16) {
        const int32 exponent = int32(bit_cast<uint32>(absmax) >> 23);
        const uint32 biased = exponent > 15 ? uint32(exponent - 14) : 1u;
        scale = bit_cast<float>(biased << 23);
        inverse = bit_cast<float>((254u - biased) << 23);
      }
      if (lane == 0) static_cast<float*>(args.scale)[int64(r) * blocks + b] = scale;

      const int32 last = b + 1 == blocks ? args.packed_pitch : end;
      _Pragma("unroll(4)") for (int32 p = begin + lane; p < last; p += kSimd) {
        const int32 in_32 = p % 32;
        const int32 column = Config::permuted ? p - in_32 + 2 * (in_32 % 16) + in_32 / 16 : p;
        float value = 0.0f;
        if (column < args.k) {
          value = to_float<Config::dtype>(source[Config::has_k_order ? order[column] : column]);
          if constexpr (Config::has_input_quant) value = round_input<Config>(value / scale);
          else value *= inverse;
        }
        const int64 at = int64(r) * args.packed_pitch + p;
        if constexpr (Config::to == DType::int8) static_cast<int8*>(args.packed)[at] = int8(int32(value));
        else static_cast<element_t<Config::to>*>(args.packed)[at] = from_float<Config::to>(value);
      }
    }
  }
}

}  // namespace jitmoe::kernel

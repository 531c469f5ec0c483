// SPDX-License-Identifier: MIT
// How the Xe kernels read their operands; the enums mirror jitmoe/plan/xe_specs.py value by value.
#pragma once

#include <jitmoe/common/types.hpp>

namespace jitmoe {

enum class XeWeights {
  block2d,  // 2D block messages (arch/block2d.hpp): experts 64 B aligned, row pitch a multiple of 16 B
  row,      // 32 B of a row per lane (arch/block1d.hpp): K contiguous, rows 4 B aligned, K a multiple of 32
  element,  // 16-bit loads with masks: any stride, any size
};

enum class XeTokens {
  gather,   // rows of hidden_states through sorted_pairs: rows 4 B aligned, H a multiple of 32
  packed,   // rows grouped by expert, K padded with zeros to a multiple of 32, read by the lanes' own loads
  block2d,  // the same rows read by 2D block messages
};

// Kernels of quantized weights have an encoding; int8_dpas: both operands stay integers.
template <class Config> concept Quantized = requires { Config::encoding; };
template <class Config> constexpr bool kIntegerDpas = false;
template <Quantized Config> constexpr bool kIntegerDpas<Config> = Config::int8_dpas;

// Type of the first GEMM's results: fp32 if they are quantized next, as rounding twice would move them by whole steps.
template <class Config> constexpr DType kInterDtype = Config::dtype;
template <Quantized Config> constexpr DType kInterDtype<Config> = Config::fp32_inter ? DType::fp32 : Config::dtype;

}  // namespace jitmoe

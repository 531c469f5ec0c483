// SPDX-License-Identifier: MIT
// Scales and zero points of quantized weights and inputs, block by block of K.
//
// A GEMM works in blocks of Config::block_k elements of K and multiplies each block's sums by the weight row's scale and
// the token's scale. 0 means that there is one scale for all of K, which the epilogue applies (epilogue/affine.hpp).
//
//   Config::scale_block_k   elements of K that share a weight scale (and a zero point), a multiple of block_k; 0: all
//   Config::input_block_k   likewise for the inputs' scales
#pragma once

#include <jitmoe/cpu/codes.hpp>

namespace jitmoe::cpu {

// How a GEMM of `Config` multiplies. Inputs are elements of Config::x_dtype; weights are codes, or elements of
// Config::dtype. Rows form and lanes form differ for int8 weights and bf16 inputs only: floats are faster to make from
// int8, pairs faster to multiply.
template <class Config> struct Gemm {
  using Lanes = Simd<Config::isa, Config::x_dtype>;
  static constexpr bool as_floats = Config::quantized && Config::encoding == Encoding::int8 && Lanes::pairs;
  using Rows = typename Conditional<as_floats, Simd<CpuIsa::avx512, Config::x_dtype>, Lanes>::type;
  template <class S>
  using Weights = typename Conditional<Config::quantized, Codes<S, Config::encoding, Config::has_zero_point>,
                                       Elements<Simd<S::isa, Config::dtype>>>::type;
  static constexpr int bits = Config::quantized ? code_bits(Config::encoding) : 8 * num_bytes(Config::dtype);
};

// Scales [blocks of n][blocks of k] and zero points of one expert, from `row` on.
struct WeightScales {
  const void* scale;
  const uint8* zero;
  int64 n_stride, k_stride, zero_n_stride, zero_k_stride;
  int64 row;
  int32 block_n;
};

// Powers of two, from their exponents.
template <int lanes> inline Vec<float, lanes> e8m0_floats(Vec<uint8, lanes> exponents) {
  using U = Vec<uint32, lanes>;
  const U bits = __builtin_convertvector(exponents, U);
  const U powers = bits == 0u ? U(0x00400000u) : bits << 23;
  return bit_cast<Vec<float, lanes>>(bits == 255u ? U(0x7fc00000u) : powers);
}

// lanes scales as floats.
template <DType dtype, int lanes> inline Vec<float, lanes> scale_floats(const element_t<dtype>* from) {
  if constexpr (dtype == DType::e8m0) return e8m0_floats<lanes>(load<Vec<uint8, lanes>>(from));
  else return load_floats<dtype, lanes>(from);
}

// Up to 16 scales as floats, then zeros; what lies past `count` of them is not touched.
template <DType dtype> inline Vec<float, 16> first_scale_floats(const element_t<dtype>* from, int count) {
  const auto bytes = load_first(reinterpret_cast<const uint8*>(from), count * num_bytes(dtype));
  if constexpr (dtype == DType::fp32) {
    return bit_cast<Vec<float, 16>>(bytes);
  } else if constexpr (dtype == DType::e8m0) {
    // A byte of zeros means a subnormal, which takes a hundred cycles to multiply.
    const auto exponents = bit_cast<Vec<uint8, 16>>(__builtin_shufflevector(bytes, bytes, 0, 1, 2, 3));
    const Vec<int32, 16> lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < count ? e8m0_floats<16>(exponents) : Vec<float, 16>(0.0f);
  } else {
    return half_floats<dtype, 16>(bit_cast<Vec<uint16, 16>>(__builtin_shufflevector(bytes, bytes, 0, 1, 2, 3, 4, 5, 6, 7)));
  }
}

// The scales of an expert's weights from `row` on, of the arguments w1_... or w2_... of a kernel.
template <class Config, class Args> inline WeightScales first_scales(const Args& args, int64 expert, int64 row) {
  return {static_cast<const element_t<Config::scale_dtype>*>(args.w1_scale) + expert * args.w1_scale_expert_stride,
          static_cast<const uint8*>(args.w1_zero_point) + expert * args.w1_zero_expert_stride,
          args.w1_scale_n_stride,
          args.w1_scale_k_stride,
          args.w1_zero_n_stride,
          args.w1_zero_k_stride,
          row,
          args.w1_block_n};
}
template <class Config, class Args> inline WeightScales second_scales(const Args& args, int64 expert, int64 row) {
  return {static_cast<const element_t<Config::scale_dtype>*>(args.w2_scale) + expert * args.w2_scale_expert_stride,
          static_cast<const uint8*>(args.w2_zero_point) + expert * args.w2_zero_expert_stride,
          args.w2_scale_n_stride,
          args.w2_scale_k_stride,
          args.w2_zero_n_stride,
          args.w2_zero_k_stride,
          row,
          args.w2_block_n};
}

constexpr int kScaleRowsAhead = 4;  // rows whose scales are asked for while one's are read

// What Blocks needs of a Config: one type for both GEMMs where they are alike, so that their code is compiled once.
template <DType x, DType scale, bool zero_point, int sums, int weights, int inputs> struct Scaling {
  static constexpr DType x_dtype = x, scale_dtype = scale;
  static constexpr bool has_zero_point = zero_point;
  static constexpr int block_k = sums, scale_block_k = weights, input_block_k = inputs;
};

template <class Config> struct Blocks {
  using Scale = element_t<Config::scale_dtype>;
  static constexpr int block_k = Config::block_k;
  static constexpr bool has_zero_point = Config::has_zero_point;
  static constexpr bool input_blocks = Config::input_block_k != 0;
  static constexpr int input_block_k = Config::input_block_k;
  static constexpr bool has_corrections = Config::x_dtype == DType::int8;
  static constexpr bool has_token_scales = input_blocks || has_corrections;
  static_assert(block_k == 0 || Config::scale_block_k % block_k == 0, "scales belong to whole blocks");
  static_assert(block_k == 0 || Config::input_block_k % block_k == 0, "scales belong to whole blocks");

  WeightScales weights;

  // Scales and zero points of one weight row.
  class Row {
   public:
    Row() = default;
    Row(const Blocks& blocks, int64 n) : weights_(&blocks.weights) {
      const int64 block = blocks.block_of_row(n);
      scales_ = static_cast<const Scale*>(weights_->scale) + block * weights_->n_stride;
      if constexpr (has_zero_point) zeros_ = weights_->zero + block * weights_->zero_n_stride;
    }

    const Scale* scale_at(int64 b) const { return scales_ + k_index(b) * weights_->k_stride; }
    float scale(int64 b) const { return to_float<Config::scale_dtype>(*scale_at(b)); }
    uint8 zero(int64 b) const { return zeros_[k_index(b) * weights_->zero_k_stride]; }

    // Whether those of neighbouring blocks lie beside each other.
    bool has_dense_scales() const { return one_to_one && weights_->k_stride == 1; }
    bool has_dense_zeros() const { return one_to_one && weights_->zero_k_stride == 1; }

    // Scales of blocks b .. b + count - 1 (at most 16), in the first lanes.
    Vec<float, 16> scales(int64 b, int count) const {
      if (has_dense_scales()) {
        if (b * sizeof(Scale) % 64 == 0) prefetch(scale_at(b) + kScaleRowsAhead * weights_->n_stride);
        return first_scale_floats<Config::scale_dtype>(scale_at(b), count);
      }
      float lanes[16] = {};
#pragma clang loop unroll(disable)
      for (int i = 0; i < count; ++i) lanes[i] = scale(b + i);
      return load<Vec<float, 16>>(lanes);
    }

    // Their zero points.
    Vec<uint32, 16> zeros(int64 b, int count) const {
      if (has_dense_zeros()) {
        const auto bytes = load_first(zeros_ + b, count);
        return __builtin_convertvector(bit_cast<Vec<uint8, 16>>(__builtin_shufflevector(bytes, bytes, 0, 1, 2, 3)),
                                       Vec<uint32, 16>);
      }
      uint32 lanes[16] = {};
#pragma clang loop unroll(disable)
      for (int i = 0; i < count; ++i) lanes[i] = zero(b + i);
      return load<Vec<uint32, 16>>(lanes);
    }

   private:
    const WeightScales* weights_;
    const Scale* scales_;
    const uint8* zeros_;
  };

  // Scales of row n (from weights.row on) in blocks b .. b + count - 1, and what W::load takes for each.
  template <class W> void read(int64 n, int64 b, int count, float* scale, uint32* zero) const {
    const Row row(*this, n);
    prefetch(row.scale_at(b) + kScaleRowsAhead * weights.n_stride);
    int i = 0;
    if (row.has_dense_scales()) {
      const auto vectors = [&](auto width) {
        constexpr int lanes = decltype(width)::value;
        for (; i + lanes <= count; i += lanes)
          store(scale + i, scale_floats<Config::scale_dtype, lanes>(row.scale_at(b + i)));
      };
      vectors(Int<W::S::lanes>{});
      if constexpr (W::S::lanes > 4) vectors(Int<W::S::lanes / 2>{});
      if constexpr (W::S::lanes > 8) vectors(Int<W::S::lanes / 4>{});
    }
#pragma clang loop unroll(disable)
    for (; i < count; ++i) scale[i] = row.scale(b + i);
    if constexpr (has_zero_point)
#pragma clang loop unroll(disable)
      for (i = 0; i < count; ++i) zero[i] = W::zero(row.zero(b + i));
  }

  // Asks for the scales of rows n .. n + kScaleRowsAhead - 1, which nobody has asked for before they are read.
  void ask(int64 n) const {
    constexpr int64 line = 64, most = 8 * line;  // rows may lie far apart
    const auto* const from = reinterpret_cast<const uint8*>(Row(*this, n).scale_at(0));
    const int64 bytes = reinterpret_cast<const uint8*>(Row(*this, n + kScaleRowsAhead).scale_at(0)) - from;
    for (int64 at = 0; at == 0 || at < (bytes < most ? bytes : most); at += line) prefetch(from + at);
  }

  // Whether the first `rows` rows have the same scales.
  bool is_shared_by(int64 rows) const { return weights.block_n >= rows && block_of_row(0) == block_of_row(rows - 1); }

  // The block of input scales that b belongs to.
  static int64 input_index(int64 b) {
    if constexpr (Config::input_block_k == 0) return 0;
    else return b / (Config::input_block_k / block_k);
  }

 private:
  static constexpr bool one_to_one = Config::scale_block_k == block_k;

  int64 block_of_row(int64 n) const {
    if (weights.block_n == 1) return weights.row + n;  // a division takes longer than all else here
    asm volatile("");                                  // or it would be made first, needed or not
    return uint32(weights.row + n) / uint32(weights.block_n);
  }

  static int64 k_index(int64 b) {
    if constexpr (Config::scale_block_k == 0) return 0;
    else return b / (Config::scale_block_k / block_k);
  }
};

template <class Config>
using BlocksOf = Blocks<Scaling<Config::x_dtype, Config::scale_dtype, Config::has_zero_point, Config::block_k,
                                Config::scale_block_k, Config::input_block_k>>;

// What the sums of one block are multiplied by, and begin with, in the lanes form: an entry per row of the tile, and per
// padded token; null where there are none.
struct LanesScales {
  const float* rows = nullptr;
  const float* tokens = nullptr;
  const int32* corrections = nullptr;  // per row: -128 times the sum of its int8
};

// What belongs to tokens of quantized inputs: a scale per block of input_block_k (null unless blocks have their own),
// and -128 times the sum of its int8 per block of block_k (quads only).
struct TokenScales {
  const float* scale;
  const int32* correction;
};

// Units of K from u0 on that the lanes form multiplies at a time: at most `most`, none of a second block.
template <class S, class B> inline int64 chunk_units(int64 u0, int64 num_units, int64 most) {
  int64 units = num_units - u0 < most ? num_units - u0 : most;
  if constexpr (B::block_k != 0) {
    static_assert(B::block_k % S::k_per_unit == 0, "a unit belongs to one block");
    constexpr int64 block_units = B::block_k / S::k_per_unit;
    const int64 left = block_units - u0 % block_units;
    units = left < units ? left : units;
  }
  return units;
}

// Rows of inputs that were made by cpu_rows.
struct TokenRows {
  const void* scale;       // [rows][blocks of input_block_k]
  const void* correction;  // [rows][blocks of block_k]
};

// The scales of row `row`, K elements long.
template <class B> inline TokenScales token_scales(const TokenRows& rows, int64 row, int64 k) {
  TokenScales scales{};
  if constexpr (B::input_blocks)
    scales.scale = static_cast<const float*>(rows.scale) + row * ceil_div(k, B::input_block_k);
  if constexpr (B::has_corrections)
    scales.correction = static_cast<const int32*>(rows.correction) + row * ceil_div(k, B::block_k);
  return scales;
}

// Gathers the scales of one block of `padded` tokens.
template <class B>
inline LanesScales gather_scales(const TokenScales* tokens, int padded, int64 block, float* scales) {
#pragma clang loop unroll(disable)
  for (int t = 0; t < padded; ++t) scales[t] = tokens[t].scale[B::input_index(block)];
  return {nullptr, scales, nullptr};
}

}  // namespace jitmoe::cpu

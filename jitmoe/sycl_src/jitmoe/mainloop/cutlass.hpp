// SPDX-License-Identifier: MIT
// Main loop written with CuTe (sycl-tla): TiledMMA, block 2D copy atoms and CuTe layouts, for one sub-group's tile.
//
//   nk: acc[q][j][i] (column block j of 8, token block i of 16) = W[column[q] + ...][k] x[first + ...][k], W is MMA's A
//   kn: acc[q][j][i] (column block j of 16, token block i of 8), tokens are MMA's A and W its B
//
// The interface, the walk around it and the epilogues are those of the Xe kernels (mainloop/xe_operands.hpp), so both
// implementations compute the same sums in the same order. Operands are packed token rows and 2D surfaces; CuTe has no
// gather. Lanes hold the same elements as in xe_weights_a.hpp (nk) and xe_weights_b.hpp (kn).
//
// Register fragments have the layout in which the copies leave their elements, which is the layout that the MMA reads:
// cute::reorder would move nothing (tests/toolchain/test_cutlass.py asks CuTe's own layout algebra). Copies are issued
// atom by atom: partitioning through TiledCopy gives the same code and takes three times as long to compile.
//
// Compiled against the headers of the sycl-tla package behind an overlay (jitmoe/compilers/sycl_tla.py): its copy atoms
// are asm without volatile, and this compiler then merges loads that share a descriptor. Device code only. Emulated, the
// two kinds of atoms have portable bodies (mainloop/cutlass_emulated.hpp).
#pragma once

#include <jitmoe/mainloop/cutlass_emulated.hpp>
#include <jitmoe/mainloop/xe_operands.hpp>

#ifdef __SYCL_DEVICE_ONLY__

#include <cute/tensor_impl.hpp>
#include <cute/tensor_sg.hpp>
#include <cute/algorithm/tensor_algorithms.hpp>
#include <cute/algorithm/clear.hpp>
#include <cute/algorithm/copy.hpp>
#include <cute/algorithm/prefetch.hpp>
#include <cute/algorithm/gemm.hpp>
#include <cute/algorithm/reorder.hpp>

namespace jitmoe::mainloop {

template <class Config>
using cutlass_tile_t =
    typename Conditional<Config::layout == Layout::nk, TokenLaneTile<Config>, ColumnLaneTile<Config>>::type;

template <class Config> struct Cutlass : cutlass_tile_t<Config> {
  using Tile = cutlass_tile_t<Config>;
  using Tile::kColumnBlocks, Tile::kTokenBlocks, Tile::kAccumulators, Tile::kUnroll, Tile::index;
  using Element = cutlass_element_t<Config::dtype>;
  static constexpr bool kEmulated = Config::emulated;
  static constexpr bool kWeightsAreA = Config::layout == Layout::nk;
  static constexpr int32 kM = kWeightsAreA ? Config::tile_columns : Config::tile_rows;
  static constexpr int32 kN = kWeightsAreA ? Config::tile_rows : Config::tile_columns;
  static_assert(Config::simd == 16, "CuTe's Xe atoms are for sub-groups of 16");
  static_assert(Config::weights == XeWeights::block2d && Config::tokens == XeTokens::block2d, "2D surfaces only");
  static_assert(kM == 16 || kM == 32, "A comes by one copy atom");
  static_assert(kN % 16 == 0, "whole dpas only");

  using Mma = typename cute::TiledMMAHelper<
      cute::MMA_Atom<cute::conditional_t<kEmulated, EmulatedDpas<Config::dtype>, CutlassDpas<Config::dtype>>>,
      cute::Layout<cute::Shape<cute::Int<kM>, cute::Int<kN>, cute::Int<kStep>>>,
      cute::Layout<cute::Shape<cute::_1, cute::_1, cute::_1>>>::TiledMMA;
  static constexpr int32 kDpasK = 16, kDpasM = 8, kDpasN = 16;

  using Accumulator = arch::f32x8;
  static constexpr int32 kStep = mainloop::kStep;

  // (columns, K) of one expert's matrix and (rows, K) of the row block, in global memory.
  static auto weight_tensor(const Weights& w, const Block& block) {
    const auto data = cute::make_gmem_ptr(reinterpret_cast<const Element*>(block.matrix));
    const auto shape = cute::make_shape(w.columns, block.first_k + w.k);
    if constexpr (kWeightsAreA) return cute::make_tensor(data, shape, cute::make_stride(int32(w.stride), cute::_1{}));
    else return cute::make_tensor(data, shape, cute::make_stride(cute::_1{}, int32(w.stride)));
  }
  static auto token_tensor(const Tokens& x) {
    return cute::make_tensor(cute::make_gmem_ptr(reinterpret_cast<const Element*>(x.rows)),
                             cute::make_shape(x.count, x.width), cute::make_stride(int32(x.stride), cute::_1{}));
  }

  // The copy atoms. A: one plain load of kM rows x 32 k. B: 16 x 16 blocks, transposed from K-contiguous rows (tokens,
  // nk), or one VNNI load of 32 k x kN columns (weights, kn).
  using CopyA = cute::XE_LOAD_2D<16, kM, kStep, 16>;
  using CopyTransposed = cute::XE_LOAD_2D_TRANSPOSE<32, 16, 8>;
  using CopyVnni = cute::XE_LOAD_2D_VNNI<16, kStep, kN, 16>;
  using CopyB = cute::conditional_t<kWeightsAreA, CopyTransposed, CopyVnni>;

  // Prefetches: 2 * tile_columns weight rows (nk) resp. 32 k of both column blocks (kn), and the tile's token rows, are
  // shared out among the sub-groups that read them.
  static constexpr int32 kWeightLines = kWeightsAreA ? Config::tile_columns : kStep;  // 64 B each, of one column block
  static constexpr int32 kWeightShares = shares(Config::sub_groups_m, 2 * kWeightLines, 8);
  static constexpr int32 kWeightMessages = kWeightShares == 1 ? 2 : 1;
  static constexpr int32 kWeightRows = 2 * kWeightLines / (kWeightShares * kWeightMessages);
  static constexpr int32 kTokenShares = shares(Config::sub_groups_n, Config::tile_rows, 8);
  static constexpr int32 kTokenRows = Config::tile_rows / kTokenShares;
  static_assert(kWeightRows <= 32 && kTokenRows <= 32, "prefetch: one message each");
  static_assert(kWeightsAreA || Config::tile_columns <= 32, "prefetch: a block of columns is one line");

  template <class Op, class Tensor> static auto atom(const Tensor& tensor) {
    if constexpr (kEmulated) return EmulatedCopy<Op, Tensor>(tensor);
    else return cute::make_block_2d_copy<Element>(Op{}, tensor.stride()).with(tensor);
  }

  // The Rows x Depth block at (row, k) as the source of one copy atom: a coordinate tensor with a lane's share of the
  // elements. A block 2D atom looks at its origin only.
  template <int32 Rows, int32 Depth> static auto block_at(int32 row, int32 k) {
    using Share = cute::Int<Rows * Depth / Config::simd>;
    return cute::make_tensor(cute::make_inttuple_iter(cute::make_coord(row, k)),
                             cute::make_layout(Share{}, cute::E<0>{}));
  }

  // This sub-group's share of both column blocks' lines: one message, or one per block if it is alone.
  template <class WeightAtom, class TokenAtom> struct Prefetcher {
    WeightAtom first, second;
    TokenAtom tokens;
    int32 column[2];
    int32 k[2];
    int32 row;

    void step(int32 step_k) const {
      message(first, column[0], step_k + k[0]);
      if constexpr (kWeightMessages == 2) message(second, column[1], step_k + k[1]);
      tokens.call(block_at<kTokenRows, kStep>(row, step_k), nowhere());
    }
    static void message(const WeightAtom& atom, int32 at_column, int32 at_k) {
      if constexpr (kWeightsAreA) atom.call(block_at<kWeightRows, kStep>(at_column, at_k), nowhere());
      else atom.call(block_at<Config::tile_columns, kWeightRows>(at_column, at_k), nowhere());
    }
    // The destination of a prefetch is not looked at.
    static auto nowhere() {
      return cute::make_tensor(cute::make_smem_ptr<Element>(nullptr), cute::Layout<cute::_1>{});
    }
  };

  static auto prefetcher(const Weights& w, const Tokens& x, Place place) {
    using WeightOp = cute::conditional_t<kWeightsAreA, cute::XE_PREFETCH_2D<16, kWeightRows, kStep>,
                                         cute::XE_PREFETCH_2D<16, kWeightRows, Config::tile_columns>>;
    using TokenOp = cute::XE_PREFETCH_2D<16, kTokenRows, kStep>;
    // The lines of both column blocks, one after the other.
    const int32 line = place.m % kWeightShares * kWeightRows * kWeightMessages, in_block = line % kWeightLines;
    const Block first = block_of(w, line < kWeightLines ? 0 : 1), second = block_of(w, 1);
    const auto weights = atom<WeightOp>(weight_tensor(w, first));
    const auto tokens = atom<TokenOp>(token_tensor(x));
    return Prefetcher<cute::remove_cvref_t<decltype(weights)>, cute::remove_cvref_t<decltype(tokens)>>{
        weights,
        kWeightMessages == 2 ? atom<WeightOp>(weight_tensor(w, second)) : weights,
        tokens,
        {first.column + (kWeightsAreA ? in_block : 0), second.column},
        {first.first_k + (kWeightsAreA ? 0 : in_block), second.first_k},
        x.first + place.n % kTokenShares * kTokenRows};
  }

  // acc += W x^T over k in [k_begin, k_end), multiples of 32.
  static void run(arch::f32x8 (&acc)[kAccumulators], const Weights& w, const Tokens& x, Place place, int32 k_begin,
                  int32 k_end) {
    using cute::Int;
    using cute::Shape;
    using cute::Stride;
    using CopyW = cute::conditional_t<kWeightsAreA, CopyA, CopyB>;
    const auto copy_w0 = atom<CopyW>(weight_tensor(w, block_of(w, 0)));
    const auto copy_w1 = atom<CopyW>(weight_tensor(w, block_of(w, 1)));
    const auto copy_x = atom<cute::conditional_t<kWeightsAreA, CopyB, CopyA>>(token_tensor(x));
    const auto ahead = prefetcher(w, x, place);

    // (V, blocks along M or N, blocks along K): element v of the lane in each dpas operand.
    using FragmentA = cute::Layout<Shape<Int<kDpasM>, Int<kM / kDpasM>, Int<2>>, Stride<Int<1>, Int<kDpasM>, Int<kM>>>;
    using FragmentB =
        cute::Layout<Shape<Int<kDpasK>, Int<kN / kDpasN>, Int<2>>, Stride<Int<1>, Int<2 * kDpasK>, Int<kDpasK>>>;
    using FragmentC = cute::Layout<Shape<Int<kDpasM>, Int<kM / kDpasM>, Int<kN / kDpasN>>>;
    const Mma mma;
    auto sum0 = cute::make_tensor<float>(FragmentC{}), sum1 = cute::make_tensor<float>(FragmentC{});
    cute::clear(sum0);
    cute::clear(sum1);

    for (int32 i = 0; i < Config::prefetch_steps; ++i) ahead.step(k_begin + i * kStep);
    int32 k = k_begin;
    for (int32 steps = (k_end - k_begin) / kStep; steps > 0; --steps, k += kStep) {
      if constexpr (Config::split_barrier) arch::barrier_signal<kEmulated>();

      auto a0 = cute::make_tensor<Element>(FragmentA{});
      auto b0 = cute::make_tensor<Element>(FragmentB{});
      if constexpr (kWeightsAreA) {
        auto a1 = cute::make_tensor<Element>(FragmentA{});
        copy_w0.call(block_at<kM, kStep>(w.column[0], w.first_k[0] + k), flat(a0));
        copy_w1.call(block_at<kM, kStep>(w.column[1], w.first_k[1] + k), flat(a1));
        _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kN / kDpasN; ++i)
          _Pragma("unroll(kUnroll)") for (int32 h = 0; h < 2; ++h)
            copy_x.call(block_at<kDpasN, kDpasK>(x.first + i * kDpasN, k + h * kDpasK), b0(cute::_, i, h));
        ahead.step(k + Config::prefetch_steps * kStep);
        cute::gemm(mma, a0, b0, sum0);
        cute::gemm(mma, a1, b0, sum1);
      } else {
        auto b1 = cute::make_tensor<Element>(FragmentB{});
        copy_x.call(block_at<kM, kStep>(x.first, k), flat(a0));
        copy_w0.call(block_at<kN, kStep>(w.column[0], k), flat(b0));
        copy_w1.call(block_at<kN, kStep>(w.column[1], k), flat(b1));
        ahead.step(k + Config::prefetch_steps * kStep);
        cute::gemm(mma, a0, b0, sum0);
        cute::gemm(mma, a0, b1, sum1);
      }

      if constexpr (Config::split_barrier) arch::barrier_wait<kEmulated>();
    }

    _Pragma("unroll(kUnroll)") for (int32 j = 0; j < kColumnBlocks; ++j)
      _Pragma("unroll(kUnroll)") for (int32 i = 0; i < kTokenBlocks; ++i)
        _Pragma("unroll(kUnroll)") for (int32 v = 0; v < kDpasM; ++v) {
          const int32 m = kWeightsAreA ? j : i, n = kWeightsAreA ? i : j;
          acc[index(0, j, i)][v] += sum0(v, m, n);
          acc[index(1, j, i)][v] += sum1(v, m, n);
        }
  }

  // A fragment as one run of registers: the destination of one copy atom.
  template <class Tensor> static auto flat(Tensor& fragment) {
    return cute::make_tensor(fragment.data(), cute::Layout<cute::Int<decltype(cute::size(fragment))::value>>{});
  }

  // What a sub-group without rows does: its share of the prefetches, and its part in the barriers.
  static void idle(const Weights& w, const Tokens& x, Place place, int32 k_begin, int32 k_end) {
    if constexpr (Config::split_barrier) {
      const auto ahead = prefetcher(w, x, place);
      for (int32 i = 0; i < Config::prefetch_steps; ++i) ahead.step(k_begin + i * kStep);
      for (int32 k = k_begin; k < k_end; k += kStep) {
        arch::barrier_signal<kEmulated>();
        ahead.step(k + Config::prefetch_steps * kStep);
        arch::barrier_wait<kEmulated>();
      }
    }
  }
};

}  // namespace jitmoe::mainloop

#endif  // __SYCL_DEVICE_ONLY__

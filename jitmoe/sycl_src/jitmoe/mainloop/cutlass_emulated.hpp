// SPDX-License-Identifier: MIT
// CuTe's two kinds of Xe atoms with portable bodies, for executing mainloop/cutlass.hpp on the CPU device. sycl-tla's own
// bodies are vISA assembly and abort elsewhere.
//
//   EmulatedDpas<dtype>        in place of XE_DPAS_TT<8, float, T>; register types and MMA traits are CuTe's
//   EmulatedCopy<Op, Tensor>   in place of the Copy_Atom that make_block_2d_copy gives for Op and a global tensor: the same
//                              interface, .call(coordinates, fragment), and the register order of CuTe's traits for Op
//
// Everything above the atoms (tensors, coordinates, fragments, cute::gemm, TiledMMA) stays CuTe's. What this cannot show:
// that the assembly of the atoms does what its traits say, and their descriptors.
#pragma once

#ifdef __SYCL_DEVICE_ONLY__

#include <cute/tensor_impl.hpp>
#include <cute/tensor_sg.hpp>
#include <cute/algorithm/tensor_algorithms.hpp>
#include <cute/algorithm/copy.hpp>
#include <cute/algorithm/gemm.hpp>

#include <jitmoe/arch/block2d.hpp>
#include <jitmoe/arch/dpas.hpp>

namespace jitmoe::mainloop {

template <DType> struct CutlassElement;
template <> struct CutlassElement<DType::bf16> { using type = cute::bfloat16_t; };
template <> struct CutlassElement<DType::fp16> { using type = cute::half_t; };
template <DType dtype> using cutlass_element_t = typename CutlassElement<dtype>::type;

template <DType dtype> using CutlassDpas = cute::XE_DPAS_TT<8, float, cutlass_element_t<dtype>>;

template <DType dtype>
struct EmulatedDpas : cute::XE_DPAS_TT_Base<8, float, cutlass_element_t<dtype>, cutlass_element_t<dtype>, float> {
  template <class D, class A, class B, class C> static void fma(D& d, const A& a, const B& b, const C& c) {
    d = bit_cast<D>(arch::dpas<true, 16, dtype>(bit_cast<arch::i16x8>(a), bit_cast<arch::u32x8>(b),
                                                bit_cast<arch::f32x8>(c)));
  }
};

template <class Op> struct EmulatedMessage {  // a prefetch: nothing
  template <class Out> static void run(const arch::Surface&, int32, int32, Out) {}
};

template <int rows> struct EmulatedMessage<cute::XE_LOAD_2D<16, rows, 32, 16>> {
  static void run(const arch::Surface& surface, int32 x, int32 y, uint16* out) {
    uint16 values[2 * rows];
    arch::load(arch::LoadPayload<true, rows, 2>(surface, x, y), 0, 0, values);
    for (int32 i = 0; i < 2 * rows; ++i) out[i] = values[i];
  }
};

template <> struct EmulatedMessage<cute::XE_LOAD_2D_TRANSPOSE<32, 16, 8>> {
  static void run(const arch::Surface& surface, int32 x, int32 y, uint16* out) {
    const arch::u32x8 values = arch::load_transposed(arch::TransposedPayload<true>(surface, x / 2, y), 0, 0);
    for (int32 i = 0; i < 16; ++i) out[i] = uint16(values[i / 2] >> (i % 2 * 16));
  }
};

template <int columns> struct EmulatedMessage<cute::XE_LOAD_2D_VNNI<16, 32, columns, 16>> {
  static void run(const arch::Surface& surface, int32 x, int32 y, uint16* out) {
    uint32 values[columns];
    arch::load_vnni(arch::LoadPayload<true, 32, columns / 16>(surface, x, y), 0, 0, values);
    for (int32 i = 0; i < 2 * columns; ++i) out[i] = uint16(values[i / 2] >> (i % 2 * 16));
  }
};

// x is the mode of the tensor with stride 1, y the other one, as make_block_2d_copy finds them.
template <class Op, class Tensor> struct EmulatedCopy {
  static constexpr int32 kX = cute::is_constant<1, decltype(cute::stride<0>(Tensor{}))>::value ? 0 : 1;
  arch::Surface surface;

  explicit EmulatedCopy(const Tensor& tensor)
      : surface{cute::raw_pointer_cast(tensor.data()), int32(cute::size<kX>(tensor)) * 2,
                int32(cute::size<1 - kX>(tensor)), int32(cute::stride<1 - kX>(tensor)) * 2} {}

  template <class Source, class Destination> void call(const Source& source, Destination&& destination) const {
    const auto origin = source.data().coord_;
    EmulatedMessage<Op>::run(surface, int32(cute::get<kX>(origin)), int32(cute::get<1 - kX>(origin)),
                             reinterpret_cast<uint16*>(cute::raw_pointer_cast(destination.data())));
  }
};

}  // namespace jitmoe::mainloop

namespace cute {
template <jitmoe::DType dtype>
struct MMA_Traits<jitmoe::mainloop::EmulatedDpas<dtype>> : MMA_Traits<jitmoe::mainloop::CutlassDpas<dtype>> {};
}  // namespace cute

#endif  // __SYCL_DEVICE_ONLY__

// Instructions that work element by element, and chains of them whose values stay in registers. Without chains, most time
// goes into reading and writing rows, not into computing.
#pragma once
#include <utility>

#include "kernels/codecs.h"

namespace visq::engine::VISQ_LEVEL {

#define VISQ_EACH _Pragma("GCC unroll 8") for (int j = 0; j < U; ++j)
#define VISQ_INLINED __attribute__((always_inline))

// An instruction at one row. apply() computes U vectors from channel c on; `a` and `b` are its operands, and a kRound
// leaves its codes in `b`. This one serves the instructions that need nothing but their operands.
template <class V, Instruction::Op kOp>
struct Element {
  VISQ_INLINED Element(const Instruction&, const Frame&, int64_t) {}
  template <int U, class T>
  VISQ_INLINED void apply(int64_t, const T* a, T* b, T* out) const {
    VISQ_EACH out[j] = a[j];
    if constexpr (kOp == Instruction::kSilu) {
      silu<V, U>(out);
    } else if constexpr (kOp == Instruction::kSoftplus) {
      softplus<V, U>(out);
    } else if constexpr (kOp == Instruction::kGelu) {
      gelu<V, U>(out);
    } else if constexpr (kOp == Instruction::kGeluTanh) {
      gelu_tanh<V, U>(out);
    } else if constexpr (kOp == Instruction::kSigmoid) {
      sigmoid<V, U>(out);
    } else if constexpr (kOp == Instruction::kRelu) {
      VISQ_EACH out[j] = V::max(V::zero(), a[j]);  // NaN stays, and so does -0
    } else if constexpr (kOp == Instruction::kNeg) {
      VISQ_EACH out[j] = V::neg(a[j]);
    } else if constexpr (kOp == Instruction::kAdd) {
      VISQ_EACH out[j] = V::add(a[j], b[j]);
    } else if constexpr (kOp == Instruction::kMul) {
      VISQ_EACH out[j] = V::mul(a[j], b[j]);
    } else {
      static_assert(sizeof(V) == 0, "an elementwise instruction without a function");
    }
  }
};

template <class V>
struct Element<V, Instruction::kMulScalar> {
  const typename V::T scalar;
  VISQ_INLINED Element(const Instruction& s, const Frame&, int64_t) : scalar(V::set1(s.value)) {}
  template <int U, class T>
  VISQ_INLINED void apply(int64_t, const T* a, T*, T* out) const {
    VISQ_EACH out[j] = V::mul(a[j], scalar);
  }
};

template <class V, Instruction::Op kOp>
struct WithConstant {
  const float* constant;
  VISQ_INLINED WithConstant(const Instruction& s, const Frame&, int64_t row)
      : constant(s.constant + row * s.constant_stride) {}
  template <int U, class T>
  VISQ_INLINED void apply(int64_t c, const T* a, T*, T* out) const {
    VISQ_EACH {
      const T k = V::load(constant + c + j * V::W);
      out[j] = kOp == Instruction::kAddConstant ? V::add(a[j], k) : V::mul(a[j], k);
    }
  }
};

template <class V>
struct Element<V, Instruction::kAddConstant> : WithConstant<V, Instruction::kAddConstant> {
  using WithConstant<V, Instruction::kAddConstant>::WithConstant;
};

template <class V>
struct Element<V, Instruction::kMulConstant> : WithConstant<V, Instruction::kMulConstant> {
  using WithConstant<V, Instruction::kMulConstant>::WithConstant;
};

template <class V>
struct Element<V, Instruction::kRound> {
  const RowCodec<V> codes;
  VISQ_INLINED Element(const Instruction& s, const Frame&, int64_t row) : codes(*s.codec, row) {}
  template <int U, class T>
  VISQ_INLINED void apply(int64_t c, const T* a, T* b, T* out) const {
    VISQ_EACH out[j] = a[j];
    codes.template round<U>(c, out, b);
  }
};

template <class V>
struct Element<V, Instruction::kLoad> {
  const RowCodec<V> codes;
  const uint8_t* bytes;
  VISQ_INLINED Element(const Instruction& s, const Frame& f, int64_t row)
      : codes(*f.tensors[s.tensor].codec, row), bytes(f.row<uint8_t>(f.tensors[s.tensor], row)) {}
  template <int U, class T>
  VISQ_INLINED void apply(int64_t c, const T*, T*, T* out) const {
    codes.template decode<U>(c, bytes + c, out);
  }
};

template <class V>
struct Element<V, Instruction::kStoreFloats> {
  float* floats;
  VISQ_INLINED Element(const Instruction& s, const Frame& f, int64_t row) : floats(f.row<float>(f.tensors[s.tensor], row)) {}
  template <int U, class T>
  VISQ_INLINED void apply(int64_t c, const T* a, T*, T*) const {
    VISQ_EACH V::store(floats + c + j * V::W, a[j]);
  }
};

template <class V>
struct Element<V, Instruction::kStore> {
  const RowCodec<V> codes;
  uint8_t* bytes;
  VISQ_INLINED Element(const Instruction& s, const Frame& f, int64_t row)
      : codes(*f.tensors[s.tensor].codec, row), bytes(f.row<uint8_t>(f.tensors[s.tensor], row)) {}
  template <int U, class T>
  VISQ_INLINED void apply(int64_t c, const T* a, T*, T*) const {
    T x[U];
    VISQ_EACH x[j] = a[j];
    codes.template encode<U>(c, x, bytes + c);
  }
};

// Stores the codes that a kRound of the same chain has made.
template <class V>
struct Element<V, Instruction::kStoreRounded> {
  uint8_t* bytes;
  VISQ_INLINED Element(const Instruction& s, const Frame& f, int64_t row) : bytes(f.row<uint8_t>(f.tensors[s.tensor], row)) {}
  template <int U, class T>
  VISQ_INLINED void apply(int64_t c, const T* a, T*, T*) const {
    if constexpr (U % 4 == 0) {
      for (int j = 0; j < U; j += 4) V::to_bytes4(bytes + c + j * V::W, a + j);
    } else {
      VISQ_EACH V::to_bytes(bytes + c + j * V::W, a[j]);
    }
  }
};

// A link of a chain: an instruction, and the links whose results are its operands.
constexpr int kMemory = -1;  // no link: the operand is its register's row in memory

template <Instruction::Op kOp, int kA = kMemory, int kB = kMemory>
struct Link {
  static constexpr LinkShape shape = {kOp, kA, kB};
};

// A link at one row. It also writes its result where something outside of the chain reads it.
template <class V, class L>
struct LinkAt {
  static constexpr bool kBinary = is_binary(L::shape.op), kReads = reads(L::shape.op), kWrites = writes(L::shape.op);
  static constexpr bool kRounds = L::shape.op == Instruction::kRound, kRounded = L::shape.op == Instruction::kStoreRounded;
  const Element<V, L::shape.op> element;
  const float *a, *b;
  float* out;

  VISQ_INLINED LinkAt(const Instruction& s, const BodyRows& rows, int64_t i)
      : element(s, rows.frame, rows.first + i), a(nullptr), b(nullptr), out(nullptr) {
    if (kReads && L::shape.a == kMemory) a = rows.operand(s.a, s.a_offset, i);
    if (kBinary && L::shape.b == kMemory) b = rows.operand(s.b, s.b_offset, i);
    if (kWrites && s.in_memory) out = rows.result(s, i);
  }

  // `values` and `codes` are results and codes by link.
  template <int U, class T>
  VISQ_INLINED void apply(int64_t c, T (*values)[U], T (*codes)[U], int link) const {
    T x[U], y[U];
    if constexpr (kReads && L::shape.a == kMemory) VISQ_EACH x[j] = V::load(a + c + j * V::W);
    if constexpr (kReads && L::shape.a != kMemory) VISQ_EACH x[j] = (kRounded ? codes : values)[L::shape.a][j];
    if constexpr (kBinary && L::shape.b == kMemory) VISQ_EACH y[j] = V::load(b + c + j * V::W);
    if constexpr (kBinary && L::shape.b != kMemory) VISQ_EACH y[j] = values[L::shape.b][j];
    element.template apply<U, T>(c, x, kRounds ? codes[link] : y, values[link]);
    if constexpr (kWrites)
      if (out) VISQ_EACH V::store(out + c + j * V::W, values[link][j]);
  }
};

template <class V, class... Links>
struct Chain {
  template <size_t I, class L>
  struct Place : LinkAt<V, L> {
    using LinkAt<V, L>::LinkAt;
  };

  template <class Indices>
  struct Row;
  template <size_t... I>
  struct Row<std::index_sequence<I...>> : Place<I, Links>... {
    VISQ_INLINED Row(const Instruction* steps, const BodyRows& rows, int64_t i) : Place<I, Links>(steps[I], rows, i)... {}
    template <int U>
    VISQ_INLINED void apply(int64_t c) const {
      typename V::T values[sizeof...(I)][U], codes[sizeof...(I)][U];
      (Place<I, Links>::template apply<U>(c, values, codes, I), ...);
    }
  };

  // Eight vectors at a time where registers suffice, then four, then one: a single one is a long chain of dependent
  // instructions.
  static void run(const Instruction* steps, const BodyRows& rows) {
    const int64_t width = steps->width;
    for (int64_t i = 0; i < rows.count; ++i) {
      const Row<std::index_sequence_for<Links...>> row(steps, rows, i);
      int64_t c = 0;
      if constexpr (V::W == 16)
        for (; c + 8 * V::W <= width; c += 8 * V::W) row.template apply<8>(c);
      for (; c + 4 * V::W <= width; c += 4 * V::W) row.template apply<4>(c);
      for (; c < width; c += V::W) row.template apply<1>(c);
    }
  }
};

template <class... Links>
struct Shapes {
  static constexpr LinkShape links[] = {Links::shape...};
};

template <class V, class... Links>
constexpr ChainShape chain() {
  return {Shapes<Links...>::links, sizeof...(Links), Chain<V, Links...>::run};
}

// The chains that bodies of Vim and VMamba consist of. The first that fits is taken; every instruction is also a chain.
template <class V>
struct ChainList {
  using S = Instruction;
  static constexpr ChainShape chains[] = {
      // y + D u of both scans, gated.
      chain<V, Link<S::kLoad>, Link<S::kLoad>, Link<S::kMulConstant, 1>, Link<S::kAdd, 0, 2>, Link<S::kLoad>,
            Link<S::kLoad>, Link<S::kMulConstant, 5>, Link<S::kAdd, 4, 6>, Link<S::kAdd, 3, 7>, Link<S::kLoad>,
            Link<S::kMul, 8, 9>, Link<S::kMulScalar, 10>, Link<S::kStore, 11>>(),
      chain<V, Link<S::kLoad>, Link<S::kLoad>, Link<S::kMulConstant, 1>, Link<S::kAdd, 0, 2>, Link<S::kLoad>,
            Link<S::kLoad>, Link<S::kMulConstant, 5>, Link<S::kAdd, 4, 6>, Link<S::kAdd, 3, 7>, Link<S::kLoad>,
            Link<S::kMul, 8, 9>, Link<S::kMulScalar, 10>>(),
      // The same from floats.
      chain<V, Link<S::kMulConstant>, Link<S::kAdd, kMemory, 0>, Link<S::kMulConstant>, Link<S::kAdd, kMemory, 2>,
            Link<S::kAdd, 1, 3>, Link<S::kSilu>, Link<S::kMul, 4, 5>, Link<S::kMulScalar, 6>, Link<S::kStore, 7>>(),
      // y + D u of two scans.
      chain<V, Link<S::kLoad>, Link<S::kMulConstant>, Link<S::kAdd, 0, 1>, Link<S::kLoad>, Link<S::kMulConstant>,
            Link<S::kAdd, 3, 4>, Link<S::kAdd, 2, 5>, Link<S::kStoreFloats, 6>>(),
      chain<V, Link<S::kLoad>, Link<S::kLoad>, Link<S::kMulConstant, 1>, Link<S::kAdd, 0, 2>, Link<S::kLoad>,
            Link<S::kLoad>, Link<S::kMulConstant, 5>, Link<S::kAdd, 4, 6>, Link<S::kAdd, 3, 7>>(),
      // A convolution's activation.
      chain<V, Link<S::kRound>, Link<S::kSilu, 0>, Link<S::kRound, 1>, Link<S::kStore, 2>,
            Link<S::kStoreRounded, 2>>(),
      chain<V, Link<S::kRound>, Link<S::kSilu, 0>, Link<S::kStore, 1>>(),
      chain<V, Link<S::kSilu>, Link<S::kRound, 0>, Link<S::kStore, 1>, Link<S::kStoreRounded, 1>>(),
      chain<V, Link<S::kSilu>, Link<S::kStore, 0>, Link<S::kStoreFloats, 0>>(),
      // Activations of linear layers, and the residual stream.
      chain<V, Link<S::kGelu>, Link<S::kRound, 0>, Link<S::kStore, 1>>(),
      chain<V, Link<S::kSilu>, Link<S::kStore, 0>>(),
      chain<V, Link<S::kSoftplus>, Link<S::kStore, 0>>(),
      chain<V, Link<S::kSoftplus>, Link<S::kStoreFloats, 0>>(),
      chain<V, Link<S::kRound>, Link<S::kAdd, kMemory, 0>>(),

#define VISQ_ALONE(op, name, operands) chain<V, Link<S::op>>(),
      VISQ_ELEMENTWISE(VISQ_ALONE)
#undef VISQ_ALONE
      chain<V, Link<S::kAddConstant>>(), chain<V, Link<S::kMulConstant>>(), chain<V, Link<S::kMulScalar>>(),
      chain<V, Link<S::kRound>>(), chain<V, Link<S::kLoad>>(), chain<V, Link<S::kStore>>(),
      chain<V, Link<S::kStoreFloats>>(),
  };
  static constexpr int64_t count = sizeof chains / sizeof *chains;
};

#undef VISQ_EACH
#undef VISQ_INLINED

}  // namespace visq::engine::VISQ_LEVEL

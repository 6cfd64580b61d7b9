// What the engine executes: plain structs whose pointers lead to memory that Engine owns. The Python modules of
// visq.integer define the operations and their arithmetic under the same names.
//
// Rows are padded: floats to a multiple of 16, bytes to a multiple of 64, vectors of parameters to 64 bytes. Kernels read
// and write whole vectors, and what lies in the padding never reaches a result.
#pragma once
#include <cstddef>
#include <cstdint>

#include "shared.h"

namespace visq::engine {

// Rows that a source computes at a time: few enough for the first cache. A level with AMX takes two tiles of rows.
constexpr int64_t kTileRows = 6, kMatrixRows = 32;
constexpr int64_t kChannels = 16;  // of one block of a scan
constexpr int kRegisters = 256;    // of a body
constexpr int64_t kMaxKernel = 15;  // side of a 2D convolution's kernel

VISQ_SHARED constexpr int64_t padded(int64_t n, int64_t to = 16) { return (n + to - 1) / to * to; }
VISQ_SHARED constexpr int64_t half(int64_t side) { return (side + 1) / 2; }  // positions of a sample along a side

// The codes of a tensor, one byte each:
//   byte = clamp(rint((x * inverse[c]) * inverse_token[t]) + zero, low, high)
//   x = ((byte - zero) * step[c]) * step_token[t]
// `zero`, `low` and `high` include the offset that turns signed codes into bytes. A tensor without scales by token has
// token vectors of ones, which change nothing. Token vectors are in the order of the tensor's rows.
struct Codec {
  int64_t width, rows;
  const float *inverse, *step;              // [width]
  const float *inverse_token, *step_token;  // [rows]
  bool by_channel, by_token;                // whether any factor of the kind differs from 1
  const float* zero;                        // [width]; nullptr: zero points go by row
  const int16_t* packed_zero;               // `zero` in the order of round_to_bytes (csrc/lanes/generic.h)
  const float* zero_token;                  // [rows]
  float low, high;
  // With a table: byte = how many thresholds lie below, x = table[byte] * step. `positions` is 0, 1, 2, ...
  const float *table, *thresholds, *positions;  // [256], [thresholds_count], [256]
  int thresholds_count;
};

struct Tensor {
  int64_t rows, width;
  int64_t stride;  // [elements] from row to row
  int64_t offset;  // [bytes] in the arena
  const Codec* codec;  // nullptr: float32
  int64_t map_height;  // of the map it holds; 0: a square map, or none
};

// Windows of a map or of the image. An operation without windows has `height` 0.
struct Windows {
  int64_t height, width, out_width;  // of the map; windows in a row
  int64_t kernel_height, kernel_width, stride_height, stride_width, padding_height, padding_width;
  uint8_t outside;  // the code of zero, which lies around a map of codes
};

// Weights lie in panels of `panel` blocks, a block having the `lanes` outputs of one vector. A panel is [step of the
// sum][block][lane][elements of a step].
struct FloatLinear {
  int64_t K, N;  // N padded to 16
  const float* packed;
  const float* bias;  // nullptr: none
};

struct IntLinear {
  int64_t K, N;
  bool tiled;  // computed by AMX: packed for K padded to 64
  // Weights of 4 bits: a byte of `packed` holds those of two steps of the sum (4 elements each), the first in its low
  // half.
  bool nibbles;
  // The sum is over 16-bit values: (values[byte] - offset[k]) * factor[k]. Without `values`, the byte takes their place.
  bool wide;
  const int16_t* values;           // [256] or nullptr
  const int16_t *offset, *factor;  // [K]
  const void* packed;              // int8 or int16
  const int32_t* row_sums;         // [N] sums of an output's weights
  const float *scale, *bias;       // [N]
  const float* token;              // [rows]
  const int32_t* zero;             // [rows]
};

struct Conv1d {
  int64_t K;
  bool reverse;       // from the last row to the first
  int64_t ahead;      // rows after its own, in that direction, that a row also reads
  int64_t length;     // rows of a sequence; the tensor holds one after the other
  const float* bias;
  const float* weight;        // float32: [K][C]
  const int32_t* taps;        // integers: [K][C]
  const int8_t* four;         // integers, at most four taps, after zeros: [C][4]; nullptr: more taps, or no such product
  const int32_t* correction;  // [K + 1][C]: zero[c] * (sum of the taps from k on)
  const float* scale;
};

struct Conv2d {
  int64_t K, padding, height, width, out_width;  // of the map; its stride is 1
  const float* bias;
  const float* weight;             // float32: [K * K][C]
  const int32_t *taps, *tap_sums;  // integers: [K * K][C], and their sums [C]
  const int32_t* zero;             // [C]
  const float* scale;
};

// A step function of 16-bit numbers: values[how many thresholds are not above x], laid out for search32 or search256
// (csrc/lanes/avx512_base.h).
constexpr int64_t kFewSteps = 31, kManySteps = 255;
struct ScanTable {
  const int16_t* lut;  // value by value, from the least number on; nullptr: there is no table
  int64_t steps;
  const int16_t *thresholds, *values;  // nullptr: more steps than a search takes
};

// What all scans in fixed point have; a ladder has no exponents (a, shift, delta_scale).
struct ScanSteps {
  int64_t L, C, N;  // C padded to 16, N to an even number
  bool reverse;
  const uint16_t* a;  // [C / lanes][N / 2][lanes][2]
  int shift;
  const float *delta_scale, *input_channel, *y_channel;  // [C]; y_channel is in units of a state's lane
  const float *beta_scale, *input_step, *y_step;         // [L]
  const int16_t* lift;                                   // [L]
};

struct FusedScan {
  ScanSteps steps;
  const int16_t* power;  // [L][4][2], unsigned, each twice
  int state_low, state_high, point;  // a step adds up in units of 2^-point of a code
};

struct LadderScan {
  ScanSteps steps;
  const float* rate;     // [C]; r = 2^(delta rate)
  const int16_t* ratio;  // [L], of the state's scales
  int state_low, state_high, point;  // a step adds up in units of 2^-point of a code
};

struct FixedScan {
  ScanSteps steps;
  int abar_power[4];
  int abar_fraction, abar_high, abar_bits;
  ScanTable abar_table;  // [32768]
  int bbar_low, bbar_high, bbar_bits;
  ScanTable bbar_table;        // [65536]
  const float* drive_channel;  // [C]
  const uint16_t* decay;       // [L]
  int state_low, state_high, point;  // a step adds up in units of 2^-point of a code
  // No tables, the exponent's point lies between its two halves, and the high bits of the 16 are Abar's code, in range
  // without a clamp.
  bool aligned;
};

// How the scan in float32 rounds Abar or Bbar.
struct FactorCodec {
  enum Kind { kNone, kUniform, kTable } kind;
  float inverse, low, high, step;
  const float *table, *thresholds;
  int thresholds_count;
};

struct FloatScan {
  int64_t L, C, N;
  int64_t length;  // steps of a sequence, which begins without a state
  bool reverse;
  const float* A;  // [C / 16][N][16], times log2(e)
  FactorCodec abar, bbar;
  const float *bbar_channel, *bbar_inverse;  // [C]: Bbar is rounded times bbar_inverse, u is multiplied by bbar_channel
  const float *step, *scale;  // [L], [C / 16][N][16]; step nullptr: the state is not quantized
  float low, high;
  bool read_quantized;
};

// Self-attention of sequences of `length` rows, head by head. Scores are float(sum of q k) * q_scale[row] * k_scale[row],
// results float(sum of probabilities v) * v_scale[channel] * p_scale[row]; the sums are over codes less zero points. In
// float32 they are over values, and the scores' factor is `scale`.
struct Attention {
  int64_t heads, length, head_width;
  bool integers;
  float scale;
  const float *q_scale, *k_scale, *v_scale, *p_scale;
  const Codec *scores, *probs;  // [rows, heads * length]; nullptr: not rounded
};

// Rows of a concatenation: `count` from `first` on, or one constant row.
struct Part {
  int tensor;  // -1: the constant
  int64_t first, count;
  const float* constant;
};

// Instructions that compute each element by itself: X(op, its name in programs, how many registers it reads). The
// functions are in kernels/chains.h, their definitions in src/visq/integer/instructions.py.
#define VISQ_ELEMENTWISE(X) \
  X(kSilu, "silu", 1) X(kSoftplus, "softplus", 1) X(kGelu, "gelu", 1) X(kGeluTanh, "gelu_tanh", 1) \
  X(kSigmoid, "sigmoid", 1) X(kRelu, "relu", 1) X(kNeg, "neg", 1) X(kAdd, "add", 2) X(kMul, "mul", 2)

// An instruction of a body. Its operands and its result are registers: rows of floats.
struct Instruction {
  enum Op {
    kView,          // floats of a tensor, in place
    kLoad,          // codes without a table, of the row at hand
    kLoadRow,       // codes with a table, or of a fixed row
#define VISQ_OP(op, name, operands) op,
    VISQ_ELEMENTWISE(VISQ_OP)
#undef VISQ_OP
    kAddConstant, kMulConstant, kMulScalar, kRmsNorm, kLayerNorm,
    kAppend,        // a, then b
    kTurn,          // (-b, a) of each pair (a, b)
    kRound,         // to codes without a table, and back
    kRoundTable,    // to codes with a table, and back
    kRotate,
    kStore,         // codes without a table
    kStoreFloats,
    kStoreTable,    // codes with a table
    kStoreRounded,  // in chains only: the codes that a kRound of the chain has made
  };
  Op op;
  int dst, a, b;
  int64_t a_offset, b_offset;  // the operand's first channel, where it is a slice of its register
  bool in_memory;  // something outside of the chain reads dst
  int64_t width;
  int64_t slot;    // [floats a row] where dst lies
  int64_t row;     // kView, kLoadRow: -1 for the row at hand
  int64_t first_width;  // kAppend: of a
  float value, eps;
  int tensor;
  const Codec* codec;
  const float* constant;  // [1 or rows][padded width]
  int64_t constant_stride;
  const float* bias;  // kLayerNorm
  const FloatLinear* linear;  // kRotate: [m, m], for runs of m, after sums and differences at distance m, 2 m, ...
};

VISQ_SHARED constexpr bool writes(Instruction::Op op) {
  return op != Instruction::kStore && op != Instruction::kStoreFloats && op != Instruction::kStoreTable &&
         op != Instruction::kStoreRounded;
}
VISQ_SHARED constexpr bool reads(Instruction::Op op) {
  return op != Instruction::kView && op != Instruction::kLoad && op != Instruction::kLoadRow;
}
VISQ_SHARED constexpr bool is_binary(Instruction::Op op) {
#define VISQ_READS_TWO(its_op, name, operands) if (op == Instruction::its_op) return operands == 2;
  VISQ_ELEMENTWISE(VISQ_READS_TWO)
#undef VISQ_READS_TWO
  return op == Instruction::kAppend;
}

struct BodyRows;

// A chain: instructions that run together row by row, their values in registers (csrc/kernels/chains.h). `a` and `b` are
// the links whose results a link takes, or -1 for a register's row in memory.
struct LinkShape {
  Instruction::Op op;
  int a, b;
};

struct ChainShape {
  const LinkShape* links;
  int64_t length;
  void (*run)(const Instruction*, const BodyRows&);
};

// A piece of a body: a chain, or one instruction that belongs to none (run nullptr).
struct Segment {
  const Instruction* instructions;
  int64_t count;
  void (*run)(const Instruction*, const BodyRows&);
};

struct Operation {
  enum Kind { kPatches, kConcat, kRows, kTranspose, kShuffle, kBilinear, kAveragePool, kEnterWindows, kLeaveWindows,
              kSample, kMergeSamples, kMean, kIntLinear, kFloatLinear, kIntConv, kFloatConv, kIntConv2d, kFloatConv2d,
              kFixedScan, kFusedScan, kLadderScan,
              kFloatScan, kAttention };
  Kind kind;
  int64_t rows, width;
  int inputs[4];
  Windows windows;  // of the image (inputs[0] < 0) or of a map; a linear with windows is a convolution
  int64_t map_height, map_width;  // of the input of a transpose, a shuffle, a resampling or a sample; of merged samples
  int64_t out_height, out_width;  // of the map that a resampling makes
  int64_t scale;                  // of a shuffle
  int64_t first_row, first_column;  // of a sample
  bool by_columns;                  // of a sample
  int64_t side, window;           // of a square map, and of the square windows that its tokens are ordered by
  const Part* parts;
  int64_t part_count;
  IntLinear int_linear;
  FloatLinear float_linear;
  Conv1d conv1d;
  Conv2d conv2d;
  FixedScan fixed_scan;
  FusedScan fused_scan;
  LadderScan ladder_scan;
  FloatScan float_scan;
  Attention attention;
  int y;  // the tensor that blocks write: codes of a scan's y, which no register holds, or floats
  const Segment* segments;
  int64_t segment_count, instruction_count;
  int64_t body_rows;  // how many rows the body takes at a time
  // Scratch [floats]: of a tile of register 0, of what a source needs beside it, of the body's registers per row.
  int64_t tile_floats, extra_floats, slot_floats;
};

VISQ_SHARED constexpr bool is_scan(Operation::Kind kind) {
  return kind == Operation::kFixedScan || kind == Operation::kFusedScan ||
         kind == Operation::kLadderScan || kind == Operation::kFloatScan;
}

// Whether an operation is computed in blocks that need all rows of its inputs: channels of a scan, heads of attention.
VISQ_SHARED constexpr bool in_blocks(Operation::Kind kind) { return is_scan(kind) || kind == Operation::kAttention; }

// These blocks (a head of one sequence each), and how many tasks of `each` blocks they make.
VISQ_SHARED constexpr int64_t scan_blocks(const Operation& op) {
  if (op.kind == Operation::kAttention) return op.rows / op.attention.length * op.attention.heads;
  return padded(op.width) / kChannels;
}
VISQ_SHARED constexpr int64_t scan_tasks(const Operation& op, int64_t each) {
  return (scan_blocks(op) + each - 1) / each;
}

// One image on its way through the program, as one thread sees it.
struct Frame {
  const Tensor* tensors;
  char* arena;
  const float* image;
  int64_t channels;
  float* scratch;

  template <class T>
  VISQ_SHARED T* row(const Tensor& t, int64_t r) const {
    return reinterpret_cast<T*>(arena + t.offset) + r * t.stride;
  }
};

// Rows of register 0, or of any register.
struct View {
  const float* data;
  int64_t stride;
};

// The rows that a body works on, and their registers.
struct BodyRows {
  const Frame& frame;
  View* registers;
  float* room;
  int64_t room_rows, first, count;

  VISQ_SHARED const float* operand(int reg, int64_t offset, int64_t i) const {
    return registers[reg].data + i * registers[reg].stride + offset;
  }
  VISQ_SHARED float* result(const Instruction& s, int64_t i) const {
    return room + s.slot * room_rows + i * padded(s.width);
  }
};

// The engine's kernels of one level.
struct EngineKernels {
  int lanes, panel;  // of packed weights
  int step;          // elements of one step of an integer sum: 4 bytes or 2 shorts
  View (*source)(const Operation&, const Frame&, int64_t first, int64_t count);
  void (*body)(const Operation&, const Frame&, View, int64_t first, int64_t count);
  void (*prepare_scan)(const Operation&, const Frame&);         // once a thread, before its first block
  void (*scan)(const Operation&, const Frame&, int64_t block);  // kChannels channels
  const ChainShape* chains;  // of two that fit, the first is taken
  int64_t chain_count;
  int64_t rows = kTileRows;  // at most that a source computes at a time; scratch has room for them

  // Whether AMX computes an integer linear layer: only if the layer fills a tile. A tile takes as long whatever it holds,
  // and its sums go through memory, so VNNI is as fast for smaller layers.
  bool tiles(int64_t layer_rows, int64_t K) const { return rows == kMatrixRows && layer_rows >= 16 && K >= 64; }
};

}  // namespace visq::engine

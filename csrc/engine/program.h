// What the engine executes: plain structs whose pointers point into memory the Engine owns. visq.runtime defines the
// operations and their arithmetic; the names here are the names there.
//
// Rows are padded: a row of floats to 16 of them, a row of bytes to 64, vectors of parameters to 64 bytes. Kernels may
// read and write whole vectors of a padded row; what the padding holds never reaches a result.
#pragma once
#include <cstddef>
#include <cstdint>

namespace visq::engine {

// Rows a source computes at a time: few, so that they stay in the first cache, but two tiles where a linear layer is
// computed by AMX. Kernels::rows is the most of a level.
constexpr int64_t kTileRows = 6, kMatrixRows = 32;
constexpr int64_t kChannels = 16;  // channels of one task of a scan
constexpr int kRegisters = 256;
constexpr int64_t kMaxKernel = 15;  // of a convolution over a map

// Inlined everywhere: a copy of its own would be shared between files compiled for different machines.
#define VISQ_SHARED __attribute__((always_inline))
VISQ_SHARED constexpr int64_t padded(int64_t n, int64_t to = 16) { return (n + to - 1) / to * to; }

// Codes of one tensor, as bytes:
//   byte = clamp(rint((x * inverse[c]) * inverse_token[t]) + zero, low, high)
//   x = ((byte - zero) * step[c]) * step_token[t]
// `zero`, `low` and `high` have the offset added that makes signed codes bytes. Token vectors are ones where there is
// no scale per token (a product with 1 changes nothing), and are in the order of the tensor's rows.
struct Quantizer {
  int64_t width, rows;
  const float *inverse, *step;              // [width]
  const float *inverse_token, *step_token;  // [rows]
  bool by_channel, by_token;                // whether any of them is not 1
  const float* zero;                        // [width], or nullptr where it goes with the rows
  const int16_t* packed_zero;  // the same, in the order of Lanes::round_to_bytes
  const float* zero_token;                  // [rows]
  float low, high;
  // With a table: byte = how many thresholds lie below, x = table[byte] * step. `positions` is 0, 1, 2, ...
  const float *table, *thresholds, *positions;  // [256], [thresholds_count], [256]
  int thresholds_count;
};

struct Tensor {
  int64_t rows, width;
  int64_t stride;  // elements
  int64_t offset;  // bytes, into the arena
  int quantizer;   // -1: float32
  const Quantizer* codes;
};

// Weights of a linear layer as a kernel wants them: panels of `panel` blocks of `lanes` outputs, and in a panel
// [step of the sum][block][lane][elements of a step].
struct FloatLinear {
  int64_t K, N;  // N padded to 16
  const float* packed;
  const float* bias;  // nullptr: none is added
};

struct IntLinear {
  int64_t K, N;
  bool tiled;               // by AMX: packed for K padded to 64
  // Weights of 4 bits: a byte of `packed` holds those of two steps of the sum, of four elements each, the first in its
  // low half.
  bool nibbles;
  // The sum is over 16 bits: (values[byte] - offset[k]) * factor[k]. values nullptr: the byte itself.
  bool wide;
  const int16_t* values;           // [256]
  const int16_t *offset, *factor;  // [K]
  const void* packed;       // int8 or int16
  const int32_t* row_sums;  // [N]
  const float *scale, *bias;
  const float* token;   // [rows]
  const int32_t* zero;  // [rows]
};

struct Conv {
  int64_t K;
  bool reverse;
  const float* bias;
  const float* weight;       // float32: [K][C]
  const int32_t* taps;       // integers: [K][C]
  const int8_t* four;        // at most four of them, after zeros: [C][4]; nullptr: more, or no instruction for them
  const int32_t* correction;  // [K][C]: zero[c] * (sum of the taps from k on)
  const float* scale;
};

struct Conv2d {
  int64_t K, padding, side, out_side;  // of the square maps
  const float* bias;
  const float* weight;             // float32: [K * K][C]
  const int32_t *taps, *tap_sums;  // integers: [K * K][C], and [C] their sums
  const int32_t* zero;             // [C]
  const float* scale;
};

// A step function of 16 bits: values[how many thresholds are not above], as Lanes512::search32 or search256 want them.
constexpr int64_t kFewSteps = 31, kManySteps = 255;
struct ScanTable {
  const int16_t* lut;  // by the value, from the least one on; nullptr: there is no table
  int64_t steps;
  const int16_t *thresholds, *values;  // nullptr: more steps than a search is made for
};

// Of a scan in fixed point.
struct ScanSteps {
  int64_t L, C, N;  // N even, C padded to 16
  bool reverse;
  const uint16_t* a;  // [C / lanes][N / 2][lanes][2]
  int shift;
  const float *delta_scale, *input_channel, *y_channel;  // [C]; sums are in units of the state in its lane
  const float *beta_scale, *input_step, *y_step;         // [L]
  const int16_t* lift;                                   // [L]
};

struct FusedScan {
  ScanSteps steps;
  const int16_t* power;  // [L][4][2], unsigned, each twice
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
  // No tables; the exponent's point is between its halves, and Abar's code is the high bits of its 16 and stays in
  // range by itself.
  bool aligned;
};

// How Abar or Bbar is rounded in the scan in float32.
struct Factor {
  enum Kind { kNone, kUniform, kTable } kind;
  float inverse, low, high, step;
  const float *table, *thresholds;
  int thresholds_count;
};

struct FloatScan {
  int64_t L, C, N;
  bool reverse;
  const float* A;  // [C / 16][N][16], times log2(e)
  Factor abar, bbar;
  const float *bbar_channel, *bbar_inverse;  // [C]: Bbar is rounded times bbar_inverse, u is multiplied by bbar_channel
  const float *step, *scale;  // [L], [C / 16][N][16]; step nullptr: the state is not quantized
  float low, high;
  bool read_quantized;
};

struct Part {
  int tensor;  // -1: the constant
  int64_t first, count;
  const float* constant;
};

// Loads and stores are of codes without a table but for: kView, floats in place; kLoadRow, codes with a table or of a
// fixed row; kRoundTable and kStoreTable. kStoreRounded, in chains only, stores the codes of a rounding.
struct Step {
  enum Op { kView, kLoad, kLoadRow, kSilu, kSoftplus, kGelu, kNeg, kAdd, kMul, kAddConstant, kMulConstant, kMulScalar,
            kRmsNorm, kLayerNorm, kRound, kRoundTable, kRotate, kStore, kStoreFloats, kStoreTable, kStoreRounded };
  Op op;
  int dst, a, b;
  int64_t a_offset, b_offset;  // the first channel of an operand that is a slice of its register
  bool live;  // dst is read outside of the chain
  int64_t width;
  int64_t slot;  // of dst, in floats, per row
  int64_t row;  // kView, kLoadRow: -1 for the row at hand
  float value, eps;
  int tensor;
  const Quantizer* codes;
  const float* constant;  // [1 or rows][padded width]
  int64_t constant_stride;
  const float* bias;  // kLayerNorm
  const FloatLinear* linear;  // kRotate: [m, m], of runs of m after sums and differences at distance m, 2 m, ...
};

VISQ_SHARED constexpr bool writes(Step::Op op) {
  return op != Step::kStore && op != Step::kStoreFloats && op != Step::kStoreTable && op != Step::kStoreRounded;
}
VISQ_SHARED constexpr bool reads(Step::Op op) {
  return op != Step::kView && op != Step::kLoad && op != Step::kLoadRow;
}
VISQ_SHARED constexpr bool is_binary(Step::Op op) { return op == Step::kAdd || op == Step::kMul; }

struct Rows;

// Instructions that run together, a row at a time (csrc/engine/elements.h). Operands are the links they come from, or
// -1: their registers' rows in memory.
struct LinkShape {
  Step::Op op;
  int a, b;
};

struct ChainShape {
  const LinkShape* links;
  int64_t length;
  void (*run)(const Step*, const Rows&);
};

// What runs together of a body: a chain, or one instruction that is none (run nullptr).
struct Segment {
  const Step* steps;
  int64_t count;
  void (*run)(const Step*, const Rows&);
};

struct Operation {
  enum Kind { kPatches, kConcat, kRows, kTranspose, kMean, kIntLinear, kFloatLinear, kIntConv, kFloatConv, kIntConv2d,
              kFloatConv2d, kFixedScan, kFusedScan, kFloatScan };
  Kind kind;
  int64_t rows, width;
  int inputs[4];
  int64_t patch, patch_stride, padding, side;  // windows of the image (inputs[0] < 0) or of a map, side x side
  int64_t map_height, map_width;               // of a transpose's input
  const Part* parts;
  int64_t part_count;
  IntLinear int_linear;
  FloatLinear float_linear;
  Conv conv;
  Conv2d conv2d;
  FixedScan fixed_scan;
  FusedScan fused_scan;
  FloatScan float_scan;
  int y;  // the tensor of a scan's y: codes, which no register holds, or floats
  const Segment* segments;
  int64_t segment_count, step_count;
  int64_t body_rows;  // how many rows the body takes at a time
  // Floats of scratch: of a tile of register 0, of what a source needs beside it, of the body's registers per row.
  int64_t tile_floats, extra_floats, slot_floats;
};

VISQ_SHARED constexpr bool is_scan(Operation::Kind kind) {
  return kind == Operation::kFixedScan || kind == Operation::kFusedScan || kind == Operation::kFloatScan;
}

// A scan's blocks of channels, and tasks of `each` of them.
VISQ_SHARED constexpr int64_t scan_blocks(const Operation& op) { return padded(op.width) / kChannels; }
VISQ_SHARED constexpr int64_t scan_tasks(const Operation& op, int64_t each) {
  return (scan_blocks(op) + each - 1) / each;
}

// One image on its way through the program, as one thread sees it.
struct Frame {
  const Tensor* tensors;
  char* arena;
  const float* image;
  int64_t channels, size;
  float* scratch;

  template <class T>
  VISQ_SHARED T* row(const Tensor& t, int64_t r) const {
    return reinterpret_cast<T*>(arena + t.offset) + r * t.stride;
  }
};

// Rows of register 0.
struct View {
  const float* data;
  int64_t stride;
};

// Rows on their way through a body.
struct Rows {
  const Frame& frame;
  View* registers;
  float* room;
  int64_t room_rows, first, count;

  VISQ_SHARED const float* operand(int reg, int64_t offset, int64_t i) const {
    return registers[reg].data + i * registers[reg].stride + offset;
  }
  VISQ_SHARED float* result(const Step& s, int64_t i) const { return room + s.slot * room_rows + i * padded(s.width); }
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  int lanes, panel;  // of packed weights
  int step;          // elements of one step of an integer sum: 4 bytes or 2 shorts
  View (*source)(const Operation&, const Frame&, int64_t first, int64_t count);
  void (*body)(const Operation&, const Frame&, View, int64_t first, int64_t count);
  void (*prepare_scan)(const Operation&, const Frame&);              // once per thread, before its first block
  void (*scan)(const Operation&, const Frame&, int64_t block);  // kChannels channels
  const ChainShape* chains;  // of two that fit, the first is taken
  int64_t chain_count;
  int64_t rows = kTileRows;  // at most that a source computes at a time, for which scratch has room

  // Whether an integer linear layer is computed by AMX: if it fills a tile. Below that a tile, which takes as long
  // whatever it holds and whose sums go through memory, would do little that VNNI does not do as fast.
  bool tiles(int64_t layer_rows, int64_t K) const { return rows == kMatrixRows && layer_rows >= 16 && K >= 64; }
};

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512vnni_kernels();
const Kernels* amx_kernels();
const Kernels* amx_emulated_kernels();

// nullptr when the name is unknown, or this build, machine or system lacks it.
const Kernels* kernels_named(const char* name);

}  // namespace visq::engine

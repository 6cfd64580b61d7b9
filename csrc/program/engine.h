// A program made ready to run. Engine owns all parameters, checks every size and index as operations are added, and runs
// images on several threads. csrc/file builds it from the bytes of a file.
#pragma once
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "program/check.h"
#include "program/program.h"
#include "run/fork.h"

namespace visq::engine {

constexpr int64_t kMaxBytes = int64_t{1} << 40;    // of an arena, and of scratch
constexpr int64_t kMaxTasks = 4096;                // of a phase
constexpr int kKinds = Operation::kAttention + 1;  // of operations

// A read-only array of the caller. Whoever needs it later copies it.
template <class T>
struct Array {
  const T* data;
  int64_t size;
  T at(int64_t i) const { return data[i]; }
};

// Weights [N, K] of an integer linear layer as files hold them: panels of kPanelOutputs outputs, each [steps][outputs][4],
// a step having four elements of K, or with `nibbles` eight: a byte has an element of the first four in its low half. N is
// padded to 16 with zeros, K to a step. A kernel of the same layout reads them in place.
constexpr int64_t kPanelOutputs = 64;
struct Panels {
  const int8_t* data;
  int64_t bytes;
  bool nibbles;
};

// Parameters of a scan in fixed point: a [C, N]; others [C] or [L].
struct ScanArrays {
  Array<float> input_channel, y_channel, beta_scale, input_step, y_step;
  Array<int16_t> lift;
};

struct ExponentArrays {
  int shift;
  Array<int32_t> a;
  Array<float> delta_scale;
};

struct ScanNumbers {
  int abar_fraction, abar_high, abar_bits, bbar_low, bbar_high, bbar_bits, state_low, state_high, point;
};

struct FactorArrays {
  int kind;
  float step, inverse, low, high;
  Array<float> table, thresholds;
};

// All methods that add something throw std::invalid_argument where it does not fit.
class Engine {
 public:
  // Throws std::invalid_argument where this machine or build lacks the instruction set.
  Engine(const std::string& isa, int64_t channels, int64_t height, int64_t width);

  // --- building: program/*.cpp

  // Return the index of what was added.
  int add_codec(int64_t width, int64_t rows, Array<float> inverse, Array<float> step, Array<float> inverse_token,
                Array<float> step_token, Array<float> zero, Array<float> zero_token, float low, float high,
                Array<float> table, Array<float> thresholds);
  int add_tensor(int64_t rows, int64_t width, int64_t offset, int codec);

  // Says that a tensor holds a map of `height` rows, which is not square. Operations that follow take it so.
  void map(int tensor, int64_t height);

  // Each starts an operation, to which the instructions that follow belong. `input` is the index of a tensor.
  void patches(int64_t rows, int64_t width, int input, int64_t patch, int64_t stride, int64_t padding);
  // Makes a convolution of the linear layer that follows: it reads windows of the map `input` instead of rows. Codes have
  // the order [kernel_height][kernel_width][channels], and `outside` is the code around the map; floats have the order
  // [channels][kernel_height][kernel_width].
  void windows(int input, int64_t kernel_height, int64_t kernel_width, int64_t stride_height, int64_t stride_width,
               int64_t padding_height, int64_t padding_width, int64_t outside);
  void transpose(int input, int64_t height, int64_t width);
  // Rearranges a map of scale^2 times as many channels into one that is `scale` times as high and wide.
  void pixel_shuffle(int input, int64_t scale);
  // Resamples a map bilinearly to another height and width.
  void bilinear(int input, int64_t height, int64_t width);
  // Averages height x width parts of a map.
  void average_pool(int input, int64_t height, int64_t width);
  void enter_windows(int input, int64_t side, int64_t window);
  void leave_windows(int input, int64_t side, int64_t window);
  // Takes every second row and column of a map from (row, column) on, with zeros beyond an odd side.
  void sample(int input, int64_t height, int64_t width, int64_t row, int64_t column, bool by_columns);
  // Undoes the samples from (0, 0), (1, 0), (0, 1) and (1, 1) on, in this order; those of odd rows go by columns.
  void merge_samples(int a, int b, int c, int d, int64_t height, int64_t width);
  void mean(int input);
  void concat(int64_t rows, int64_t width);
  void concat_part(int tensor, int64_t first, int64_t count, Array<float> constant);
  void rows(int64_t rows);
  void wide_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale, Array<float> token,
                   Array<float> bias, Array<int16_t> values, Array<int16_t> offset, Array<int16_t> factor);
  void int_linear(int64_t rows, int64_t width, int input, Panels weight, Array<float> scale, Array<float> token,
                  Array<int32_t> zero, Array<float> bias);
  void float_linear(int64_t rows, int64_t width, int input, Array<float> weight, Array<float> bias);
  void int_conv(int input, Array<int8_t> weight, Array<float> scale, Array<int32_t> zero, Array<float> bias,
                bool reverse);
  void float_conv(int input, Array<float> weight, Array<float> bias, bool reverse);
  // Of the convolution over rows that was started last: rows ahead that it reads, and rows of each sequence.
  void reach(int64_t ahead, int64_t length);
  void int_conv2d(int input, int64_t kernel, int64_t padding, Array<int8_t> weight, Array<float> scale,
                  Array<int32_t> zero, Array<float> bias);
  void float_conv2d(int input, int64_t kernel, int64_t padding, Array<float> weight, Array<float> bias);
  void fixed_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanNumbers& numbers,
                  const ScanArrays& arrays, const ExponentArrays& exponents, Array<int32_t> abar_power, Array<int16_t> abar_lut, Array<int16_t> bbar_lut,
                  Array<float> drive_channel, Array<int32_t> decay);
  void fused_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanArrays& arrays,
                  const ExponentArrays& exponents, Array<int32_t> power, int state_low, int state_high, int point);
  void ladder_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanArrays& arrays, Array<float> rate,
                   Array<int32_t> ratio, int state_low, int state_high, int point);
  void float_scan(int u, int delta, int B, int C, int y, bool reverse, Array<float> A,
                  const FactorArrays& abar, const FactorArrays& bbar, Array<float> bbar_channel,
                  Array<float> bbar_inverse, Array<float> step, Array<float> scale, float low, float high,
                  bool read_quantized);

  // Of the float32 scan that was started last: steps of each sequence. Scans in integers forget at a step of no decay.
  void sequences(int64_t length);
  // Attention of sequences of `length` rows; `scores` and `probs` are codecs, or -1.
  void int_attention(int q, int k, int v, int y, int64_t heads, int64_t length, Array<float> q_scale,
                     Array<float> k_scale, Array<float> v_scale, Array<float> p_scale, int scores, int probs);
  void float_attention(int q, int k, int v, int y, int64_t heads, int64_t length, float scale, int scores, int probs);

  // Lets the newest operation follow the one before tile by tile, in one phase with it. The caller vouches that it reads
  // only the row at hand of what operations of the phase write, and that nothing written shares memory with what they
  // read. Scans join scans whose bodies they do not read: the phase computes all scans first, then all bodies.
  void join();

  // Instructions of the newest operation's body: registers dst, src, a, b. `slot`: where dst lies [floats a row].
  void load(int dst, int tensor, int64_t row, int64_t slot);
  void slice(int dst, int src, int64_t offset, int64_t width);
  void unary(const std::string& name, int dst, int src, int64_t slot);
  void binary(const std::string& name, int dst, int a, int b, int64_t slot);
  void append(int dst, int a, int b, int64_t slot);
  void turn(int dst, int src, int64_t slot);
  void with_constant(const std::string& name, int dst, int src, Array<float> constant, int64_t slot);
  void mul_scalar(int dst, int src, float value, int64_t slot);
  void rms_norm(int dst, int src, Array<float> weight, float eps, int64_t slot);
  void layer_norm(int dst, int src, Array<float> weight, Array<float> bias, float eps, int64_t slot);
  void round(int dst, int src, int codec, int64_t slot);
  void rotate(int dst, int src, Array<float> inverse_divisor, Array<float> matrix, int64_t slot);
  void store(int src, int tensor);

  // Keeps the memory of the arrays above: the engine may read weights in place. nullptr: everything is copied.
  void keep(std::shared_ptr<const void> owner) { owner_ = std::move(owner); }

  // Completes the program. Row 0 of tensor `output` is the result, after whole_output() every row.
  void finish(int64_t arena_bytes, int output);
  void whole_output();

  // --- running: run/run.cpp

  // images [batch, channels, height, width] -> out [batch, output_floats]. Calls from several threads take turns.
  void run(const float* images, int64_t batch, float* out, int threads);

  // Runs a program of one operation on arrays of the caller: [batch, rows, width] of each tensor it reads (float32 or
  // bytes) and of its output.
  struct Input {
    int tensor;
    const void* data;
  };
  void run_single(const std::vector<Input>& inputs, int64_t batch, float* out, int threads);

  // Copies the rows of a tensor after a run, for the last image. Only tensors whose memory nothing else took are whole.
  void read_tensor(int tensor, void* out, int64_t bytes);

  bool finished() const { return finished_; }
  int64_t output_floats() const;
  // The result of an image as a map: channels, height, width; row by row, channels last. Zeros where it is one row.
  // Height and width are 0 where nothing tells the height and the rows make no square.
  std::array<int64_t, 3> output_map() const;
  int64_t channels() const { return channels_; }
  int64_t height() const { return height_; }
  int64_t width() const { return width_; }
  int64_t image_floats() const { return channels_ * height_ * width_; }
  int64_t parameter_bytes() const { return parameter_bytes_; }  // as packed for the kernels
  const std::string& isa() const { return isa_; }

  // The instructions of each operation's body: spaces between those of one chain, bars between chains.
  std::vector<std::string> bodies() const;

  // Seconds of thread time by kind of source, and of its bodies, counted while enabled.
  void enable_profile(bool on);
  std::map<std::string, double> profile() const;
  // A phase as `threads` threads run it: its first operation's kind, how many tasks, and seconds since enable_profile.
  struct PhaseTime {
    std::string kind;
    int64_t tasks;
    double seconds;
  };
  std::vector<PhaseTime> phase_times(int threads);

 private:
  // What one thread works with. It has an arena of its own only for whole images.
  struct Worker {
    char* arena = nullptr;
    float* scratch = nullptr;
    int64_t prepared = -1;  // the scan that this thread has prepared, counted over all images
    double source_seconds[kKinds] = {}, body_seconds[kKinds] = {};
    std::vector<double> phase_seconds;
    ~Worker() {
      std::free(arena);
      std::free(scratch);
    }
  };
  struct Run;
  // Operations [first, last) that run together, cut into tasks.
  struct Phase {
    int first, last;
    bool scan;            // a task takes `each` blocks of a scan's channels; otherwise `each` rows
    int64_t tasks, each;
    int64_t rows = kTileRows;  // at a time
  };
  struct Slice {
    int reg;
    int64_t offset;
  };
  // An operation while its instructions are added.
  struct Draft {
    const char* name;
    Operation op;
    std::vector<Instruction> instructions;
    std::vector<Segment> segments;
    std::vector<Part> parts;
    bool joins = false;
  };

  // Parameters, zeroed and aligned; copy() fills what goes beyond the array.
  template <class T>
  T* allocate(int64_t count);
  template <class T>
  const T* copy(Array<T> from, int64_t count, T fill = T());
  const float* copy_shared(Array<float> from, int64_t count);
  const int16_t* pack_zeros(Array<float> zero);
  const float* pack_floats(const float* weight, int64_t N, int64_t K, int64_t stride_n, int64_t stride_k);

  Check next_operation(const char* name) const { return Check(name, static_cast<int64_t>(drafts_.size()), -1); }
  Check next_instruction(const char* name) const;
  Operation& start(const Check& need, const char* name, Operation::Kind kind, int64_t rows, int64_t width);
  Operation& current();
  const Tensor& tensor(const Check& need, int index) const;
  int64_t width_of(const Check& need, int reg) const;
  void need_new(const Check& need, int reg) const;
  Instruction& add(const Check& need, Instruction::Op op, int dst, int src, int64_t slot, int64_t room);

  int64_t linear_input(const Check& need, int64_t rows, int input) const;
  IntLinear& start_int_linear(const Check& need, const char* name, int64_t rows, int64_t width, int input,
                              Array<float> scale, Array<float> token, Array<float> bias);
  void pack(IntLinear& p, int64_t width, Array<int8_t> weight);
  bool in_place(const IntLinear& p, const Panels& weight) const;
  void start_windows(const char* name, Operation::Kind kind, int input, int64_t side, int64_t window);
  void start_resampling(const char* name, Operation::Kind kind, int input, int64_t height, int64_t width);
  const Codec* attention_codec(const Check& need, int index, int64_t rows, int64_t width) const;
  Attention& start_attention(const Check& need, int q, int k, int v, int y, int64_t heads, int64_t length, int scores,
                             int probs);
  Conv2d& start_conv2d(const Check& need, const char* name, Operation::Kind kind, int input, int64_t kernel,
                       int64_t padding);
  FactorCodec factor(const Check& need, const char* what, const FactorArrays& arrays);
  ScanTable scan_table(Array<int16_t> lut, int least);
  void scan_shape(const Check& need, Operation& op, int u, int delta, int B, int C, int y);
  void scan_steps(const Check& need, ScanSteps& p, Operation& op, const ScanArrays& arrays, bool reverse, int point,
                  int64_t largest, int most_lift);

  void scan_exponents(const Check& need, ScanSteps& p, const Operation& op, const ExponentArrays& exponents);

  void chain_instructions(std::vector<Instruction>& instructions, std::vector<Segment>& segments) const;
  void group_operations();
  void cut_rows(Phase& phase) const;
  void cut_scans(int threads);

  void make_workers(const Check& need, int threads, bool own_arenas);
  void run_phase(Worker& worker, char* arena, const Phase& phase, int64_t image_index, int64_t task,
                 const float* image);
  void run_image(Worker& worker, int64_t index, const float* image, float* out);
  void write_output(Worker& worker, float* out);

  std::shared_ptr<const void> owner_;
  const EngineKernels* kernels_;
  std::string isa_;
  int64_t channels_, height_, width_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> memory_;
  std::map<std::pair<float, int64_t>, const float*> constants_;  // vectors of one value, by value and length
  std::vector<std::unique_ptr<Codec>> codecs_;
  std::vector<Tensor> tensors_;
  std::vector<std::unique_ptr<Draft>> drafts_;
  std::vector<Operation> operations_;
  std::vector<Phase> phases_;
  // Registers of the newest operation: widths (-1 where unwritten), and where they lie as slices of others.
  std::vector<int64_t> widths_;
  std::vector<Slice> slices_;
  int64_t parameter_bytes_ = 0, needed_arena_ = 0, arena_bytes_ = 0, scratch_floats_ = 0;
  int output_ = -1;
  bool finished_ = false, profile_ = false, whole_output_ = false;
  Windows windows_ = {};  // of the linear layer that comes next
  int windows_input_ = -1;
  std::vector<std::unique_ptr<Worker>> workers_;
  const Worker* last_worker_ = nullptr;  // whose arena holds the last image
  ForkMutex mutex_;
};

template <class T>
T* Engine::allocate(int64_t count) {
  const size_t bytes = static_cast<size_t>(padded(count * static_cast<int64_t>(sizeof(T)) + 64, 64));
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) throw std::bad_alloc();
  memory_.emplace_back(memory, std::free);
  parameter_bytes_ += padded(count * static_cast<int64_t>(sizeof(T)), 64);
  std::memset(memory, 0, bytes);
  return static_cast<T*>(memory);
}

template <class T>
const T* Engine::copy(Array<T> from, int64_t count, T fill) {
  const int64_t room = padded(count, 64), given = from.size < room ? from.size : room;
  T* to = allocate<T>(room);
  if (given) std::memcpy(to, from.data, static_cast<size_t>(given) * sizeof(T));
  for (int64_t i = given; i < room; ++i) to[i] = fill;
  return to;
}

}  // namespace visq::engine

// A program made ready to run: it owns all parameters, checks every size and index as operations are added, and runs
// images on several threads. visq.runtime.cpu builds it.
#pragma once
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "program.h"

namespace visq::engine {

constexpr int64_t kMaxSize = 1 << 20;              // of a dimension
constexpr int64_t kMaxBytes = int64_t{1} << 40;    // of an arena
constexpr int64_t kMaxTasks = 4096;                // of a phase
constexpr int kKinds = Operation::kFloatScan + 1;  // of operations

// Throw std::invalid_argument.
void need(bool condition, const char* what);
void need_size(int64_t n);

// A read-only array from outside, copied by whoever keeps it.
template <class T>
struct Array {
  const T* data;
  int64_t size;
  T at(int64_t i) const { return data[i]; }
};

// Of a scan in fixed point: [C], [C, N] and [L] of them.
struct ScanArrays {
  int shift;
  Array<int32_t> a;
  Array<float> delta_scale, input_channel, y_channel, beta_scale, input_step, y_step;
  Array<int16_t> lift;
};

struct ScanNumbers {
  int abar_fraction, abar_high, abar_bits, bbar_low, bbar_high, bbar_bits, state_low, state_high, point;
};

struct FactorArrays {
  int kind;
  float step, inverse, low, high;
  Array<float> table, thresholds;
};

class Engine {
 public:
  // Throws std::invalid_argument where this machine or build lacks the instruction set.
  Engine(const std::string& isa, int64_t channels, int64_t size);

  // All of these throw std::invalid_argument when something does not fit.
  int add_quantizer(int64_t width, int64_t rows, Array<float> inverse, Array<float> step, Array<float> inverse_token,
                    Array<float> step_token, Array<float> zero, Array<float> zero_token, float low, float high,
                    Array<float> table, Array<float> thresholds);
  int add_tensor(int64_t rows, int64_t width, int64_t offset, int quantizer);

  // Each starts an operation; the row instructions that follow belong to it.
  void patches(int64_t rows, int64_t width, int input, int64_t patch, int64_t stride, int64_t padding);
  void transpose(int input, int64_t height, int64_t width);
  void mean(int input);
  void concat(int64_t rows, int64_t width);
  void concat_part(int tensor, int64_t first, int64_t count, Array<float> constant);
  void rows(int64_t rows);
  void wide_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale, Array<float> token,
                   Array<float> bias, Array<int16_t> values, Array<int16_t> offset, Array<int16_t> factor);
  void int_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale, Array<float> token,
                  Array<int32_t> zero, Array<float> bias);
  void float_linear(int64_t rows, int64_t width, int input, Array<float> weight, Array<float> bias);
  void int_conv(int input, Array<int8_t> weight, Array<float> scale, Array<int32_t> zero, Array<float> bias,
                bool reverse);
  void float_conv(int input, Array<float> weight, Array<float> bias, bool reverse);
  void int_conv2d(int input, int64_t kernel, int64_t padding, Array<int8_t> weight, Array<float> scale,
                  Array<int32_t> zero, Array<float> bias);
  void float_conv2d(int input, int64_t kernel, int64_t padding, Array<float> weight, Array<float> bias);
  void fixed_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanNumbers& numbers,
                  const ScanArrays& arrays, Array<int32_t> abar_power, Array<int16_t> abar_lut, Array<int16_t> bbar_lut,
                  Array<float> drive_channel, Array<int32_t> decay);
  void fused_scan(int u, int delta, int B, int C, int y, bool reverse, const ScanArrays& arrays,
                  Array<int32_t> power, int state_low, int state_high, int point);
  void float_scan(int u, int delta, int B, int C, int y, bool reverse, Array<float> A,
                  const FactorArrays& abar, const FactorArrays& bbar, Array<float> bbar_channel,
                  Array<float> bbar_inverse, Array<float> step, Array<float> scale, float low, float high,
                  bool read_quantized);

  // The operation at hand may follow the one before tile by tile: of what that and those it follows write, it reads
  // only the row at hand, and nothing that is written shares memory with what they read. A scan follows scans of whose
  // bodies it reads nothing: they are computed together, then all bodies.
  void join();

  void load(int dst, int tensor, int64_t row, int64_t slot);
  void slice(int dst, int src, int64_t offset, int64_t width);
  void unary(const std::string& name, int dst, int src, int64_t slot);
  void binary(const std::string& name, int dst, int a, int b, int64_t slot);
  void with_constant(const std::string& name, int dst, int src, Array<float> constant, int64_t slot);
  void mul_scalar(int dst, int src, float value, int64_t slot);
  void rms_norm(int dst, int src, Array<float> weight, float eps, int64_t slot);
  void layer_norm(int dst, int src, Array<float> weight, Array<float> bias, float eps, int64_t slot);
  void round(int dst, int src, int quantizer, int64_t slot);
  void rotate(int dst, int src, Array<float> inverse_divisor, Array<float> matrix, int64_t slot);
  void store(int src, int tensor);

  // No more operations. `output`: the tensor whose row 0 is the result.
  void finish(int64_t arena_bytes, int output);

  // images [batch, channels, size, size] -> out [batch, width of the output]. Calls from several threads take turns.
  void run(const float* images, int64_t batch, float* out, int threads);

  // A program of one operation alone, on arrays of the caller: [batch, rows, width] of each tensor it reads, float32 or
  // bytes, to those of its output.
  struct Input {
    int tensor;
    const void* data;
  };
  void run_alone(const std::vector<Input>& inputs, int64_t batch, float* out, int threads);

  // The rows of a tensor after a run, of the last image; only where nothing else took its memory.
  void read_tensor(int tensor, void* out, int64_t bytes);

  int64_t output_width() const;
  int64_t image_floats() const { return channels_ * size_ * size_; }
  // Of parameters, as the kernels want them.
  int64_t parameter_bytes() const { return parameter_bytes_; }
  const char* isa() const { return kernels_->name; }

  // The instructions of each operation's body: those that run together separated by spaces, others by bars.
  std::vector<std::string> bodies() const;

  // Seconds of thread time by kind of source, and of bodies; counted while enabled.
  void enable_profile(bool on);
  std::map<std::string, double> profile() const;

 private:
  // What one thread works with: its arena (for whole images), its scratch.
  struct Worker {
    char* arena = nullptr;
    float* scratch = nullptr;
    int64_t prepared = -1;  // the scan, counted over all images, that this thread has prepared
    double source_seconds[kKinds] = {}, body_seconds[kKinds] = {};
    ~Worker() {
      std::free(arena);
      std::free(scratch);
    }
  };
  struct Run;
  struct Phase {
    int first, last;  // operations [first, last), tile by tile
    bool scan;        // the blocks of scans' channels, one scan after the other; otherwise rows
    int64_t tasks, each;
    int64_t rows = kTileRows;  // at a time
  };

  template <class T>
  T* keep(int64_t count);
  template <class T>
  const T* keep(Array<T> from, int64_t count, T fill = T());
  struct Slice {
    int reg;
    int64_t offset;
  };
  void chain_steps(std::vector<Step>& steps, std::vector<Segment>& segments) const;
  void cut_scans(int threads);
  Operation& start(Operation::Kind kind, int64_t rows, int64_t width);
  Operation& current();
  Step& step(Step::Op op, int dst, int src, int64_t slot, int64_t room);
  const Tensor& tensor(int index) const;
  int64_t width_of(int reg) const;
  void need_new(int reg) const;
  void check_arena(int64_t offset, int64_t bytes);
  IntLinear& start_int_linear(int64_t rows, int64_t width, int input, Array<int8_t> weight, Array<float> scale,
                              Array<float> token, Array<float> bias, bool wide);
  const float* keep_vector(Array<float> from, int64_t count);
  const int16_t* pack_zeros(Array<float> zero);
  const float* pack_floats(const float* weight, int64_t N, int64_t K, int64_t stride_n, int64_t stride_k);
  Factor factor(const FactorArrays& arrays);
  ScanTable scan_table(Array<int16_t> lut, int least);
  Conv2d& conv2d(Operation::Kind kind, int input, int64_t kernel, int64_t padding);
  void scan_shape(Operation& op, int u, int delta, int B, int C, int y);
  void scan_steps(ScanSteps& p, Operation& op, const ScanArrays& arrays, bool reverse, int point, int64_t largest,
                  int most_lift);
  static void need_power(Array<int32_t> power, int64_t at, int most);

  void run_phase(Worker& worker, char* arena, const Phase& phase, int64_t image_index, int64_t task,
                 const float* image);
  void run_image(Worker& worker, int64_t index, const float* image, float* out);
  void write_output(Worker& worker, float* out);
  void participate(Run& run);

  const Kernels* kernels_;
  int64_t channels_, size_;
  std::vector<std::unique_ptr<void, void (*)(void*)>> memory_;
  std::map<std::pair<float, int64_t>, const float*> constants_;  // by value and number
  std::vector<std::unique_ptr<Quantizer>> quantizers_;
  std::vector<Tensor> tensors_;
  struct Building {
    Operation op;
    std::vector<Step> steps;
    std::vector<Segment> segments;
    std::vector<Part> parts;
    bool joins = false;
  };
  std::vector<std::unique_ptr<Building>> building_;
  std::vector<Operation> operations_;
  std::vector<Phase> phases_;
  // Of the registers of the operation at hand: widths, -1 where unwritten; and, for slices, what they are slices of.
  std::vector<int64_t> widths_;
  std::vector<Slice> slices_;
  int64_t parameter_bytes_ = 0, needed_arena_ = 0, arena_bytes_ = 0, scratch_floats_ = 0;
  int output_ = -1;
  bool finished_ = false, profile_ = false;
  std::vector<std::unique_ptr<Worker>> workers_;
  const Worker* last_ = nullptr;  // whose arena holds the last image
  std::mutex mutex_;
};

template <class T>
T* Engine::keep(int64_t count) {
  const size_t bytes = static_cast<size_t>(padded(count * static_cast<int64_t>(sizeof(T)) + 64, 64));
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) throw std::bad_alloc();
  memory_.emplace_back(memory, std::free);
  parameter_bytes_ += static_cast<int64_t>(bytes);
  std::memset(memory, 0, bytes);
  return static_cast<T*>(memory);
}

template <class T>
const T* Engine::keep(Array<T> from, int64_t count, T fill) {
  T* to = keep<T>(padded(count, 64));
  for (int64_t i = 0; i < padded(count, 64); ++i) to[i] = i < from.size ? from.at(i) : fill;
  return to;
}

}  // namespace visq::engine

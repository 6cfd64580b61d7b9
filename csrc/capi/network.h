// An open network of the C library: the engine and what a caller asks about it.
#pragma once
#include <memory>
#include <string>

#include "file/loader.h"
#include "visq.h"

namespace visq::capi {

// A call that the caller got wrong, or that this machine cannot serve.
struct Refused {
  visq_status status;
  std::string what;
};

class Network {
 public:
  // `level`: nullptr for VISQ_ISA, or else the fastest.
  Network(const file::Bytes& bytes, const char* level);

  const file::About& about() const { return about_; }
  const engine::Engine& engine() const { return *engine_; }

  void run(const float* images, int64_t batch, size_t floats, float* logits, size_t count, int threads);
  void run_rgb8(const uint8_t* pixels, int64_t batch, int64_t height, int64_t width, float* logits, size_t count,
                int threads);

 private:
  void need_room(int64_t batch, size_t count, int threads) const;

  std::unique_ptr<engine::Engine> engine_;
  file::About about_;
};

// A file mapped into memory, and a copy of bytes at an aligned address. Throw Refused.
file::Bytes map_file(const char* path);
file::Bytes copy_bytes(const void* bytes, size_t size);

}  // namespace visq::capi

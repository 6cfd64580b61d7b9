// AVX-512 VNNI, and the matrix instructions of AMX in plain C++: tests run them on machines without AMX. Where the
// processor would refuse an instruction, the program is aborted.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "lanes/avx512vnni.h"
#include "lanes/tile_shapes.h"

namespace visq::VISQ_LEVEL {

struct Tiles {
  static void configure(const TileShapes& shapes) {
    need(shapes.palette == 1 && shapes.start_row == 0, "no such palette");
    for (const uint8_t byte : shapes.reserved) need(byte == 0, "a reserved byte is not zero");
    for (int t = 0; t < 16; ++t) {
      need(shapes.rows[t] <= 16 && shapes.bytes[t] <= 64 && !shapes.rows[t] == !shapes.bytes[t], "no such shape");
      need(t < 8 || !shapes.rows[t], "no such tile");
    }
    State& s = state();
    s = State{};
    s.configured = true;
    for (int t = 0; t < 8; ++t) s.tiles[t].rows = shapes.rows[t], s.tiles[t].bytes = shapes.bytes[t];
  }

  static void release() { state() = State{}; }

  template <int T>
  static void zero() {
    std::memset(tile(T).data, 0, sizeof tile(T).data);
  }

  template <int T>
  static void load(const void* p, int64_t stride) {
    Tile& t = tile(T);
    std::memset(t.data, 0, sizeof t.data);
    for (int r = 0; r < t.rows; ++r) std::memcpy(t.data[r], static_cast<const char*>(p) + r * stride, t.bytes);
  }

  template <int T>
  static void store(void* p, int64_t stride) {
    const Tile& t = tile(T);
    for (int r = 0; r < t.rows; ++r) std::memcpy(static_cast<char*>(p) + r * stride, t.data[r], t.bytes);
  }

  template <int C, int A, int B>
  static void dot() {
    static_assert(C != A && A != B && B != C);
    Tile& c = tile(C);
    const Tile &a = tile(A), &b = tile(B);
    need(c.bytes % 4 == 0 && a.bytes % 4 == 0, "a tile of broken elements");
    need(c.rows == a.rows && c.bytes == b.bytes && a.bytes == 4 * b.rows, "tiles that do not fit each other");
    for (int m = 0; m < c.rows; ++m) {
      uint32_t sums[16];
      std::memcpy(sums, c.data[m], sizeof sums);
      for (int k = 0; k < a.bytes; ++k)
        for (int n = 0; n < c.bytes / 4; ++n)
          sums[n] += static_cast<uint32_t>(a.data[m][k] * static_cast<int8_t>(b.data[k / 4][4 * n + k % 4]));
      std::memcpy(c.data[m], sums, sizeof sums);
    }
  }

 private:
  struct Tile {
    int rows, bytes;
    uint8_t data[16][64];
  };
  struct State {
    bool configured;
    Tile tiles[8];
  };

  static State& state() {
    static thread_local State s;
    return s;
  }

  static Tile& tile(int t) {
    need(state().configured, "tiles without shapes");
    need(state().tiles[t].rows > 0, "a tile without a shape");
    return state().tiles[t];
  }

  static void need(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "emulated AMX: %s\n", what);
    std::abort();
  }
};

}  // namespace visq::VISQ_LEVEL

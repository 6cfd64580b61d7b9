/* visq: runs quantized vision networks, from one file, without Python. C99.
 *
 *     visq_net net;
 *     if (visq_open("net.visq", NULL, &net)) { puts(visq_error()); return 1; }
 *     visq_run_rgb8(net, pixels, 1, 224, 224, logits, 1000, 2);
 *     visq_close(net);
 *
 * A file is written by `visq export DIR --format visq -o net.visq`. Logits have the same bits on every processor, for any
 * batch and number of threads, and equal those of visq's Python engine.
 *
 * Every function returns VISQ_OK or an error code; then visq_error() says in one sentence what is wrong. No C++ exception
 * leaves a function.
 *
 * Threads: every function may be called from any thread at any time. Runs of one net take turns, runs of two nets do not.
 * A run keeps its net alive, so that another thread may close it meanwhile. A number that was closed is refused ever after.
 */
#ifndef VISQ_H
#define VISQ_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define VISQ_API __attribute__((visibility("default")))
#else
#define VISQ_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum visq_status {
  VISQ_OK = 0,
  VISQ_BAD_ARGUMENT = 1, /* a null pointer, a wrong size or number of threads, values that are not finite */
  VISQ_CLOSED = 2,       /* this net was never opened, or is closed */
  VISQ_CANNOT_READ = 3,  /* the file cannot be opened or read */
  VISQ_NOT_VISQ = 4,     /* not a file of visq */
  VISQ_DAMAGED = 5,      /* truncated or changed, or its program does not fit itself */
  VISQ_FOREIGN = 6,      /* numbers of the other byte order, or this processor has it */
  VISQ_OLDER = 7,        /* a version of the format that this library no longer reads */
  VISQ_NEWER = 8,        /* a version of the format that this library does not know yet */
  VISQ_NO_LEVEL = 9,     /* the processor or this build lacks the instruction set asked for */
  VISQ_NO_MEMORY = 10,
  VISQ_INTERNAL = 11     /* a fault of visq's; please report it */
} visq_status;

/* An open network; 0 is none. Numbers are never used twice. */
typedef uint64_t visq_net;

typedef struct visq_options {
  /* The instruction set by name; NULL: the environment's VISQ_ISA, or else the fastest. */
  const char* level;
} visq_options;

typedef struct visq_input {
  int64_t channels;     /* 3, or 1 for grey */
  int64_t height, width; /* of the image that a network takes */
  int64_t resize;       /* pixels of the shorter side, from which the centre height x width is cut; 0: a network that
                         * returns an image takes one of exactly its size */
  int32_t bicubic;      /* 1: resized by bicubic interpolation, 0: bilinear */
  float mean[4], std[4]; /* by channel: a network takes (pixel / 255 - mean) / std */
} visq_input;

typedef struct visq_output {
  int64_t size;        /* numbers that one image gives */
  int64_t classes;     /* classes that have a name: all or none */
  /* Of the image that a network returns: size = height * width * channels numbers [height][width][channels]. An enlarged
   * image has 1 or 3 channels in 0..1; a network that gives each pixel a class has a channel for each class. 0 where a
   * network returns logits [size]. */
  int64_t channels, height, width;
} visq_output;

/* Opens a file. It is mapped into memory and must stay unchanged until visq_close (replacing it by renaming is fine).
 * `options` may be NULL. */
VISQ_API visq_status visq_open(const char* path, const visq_options* options, visq_net* net);

/* Opens a file's bytes, which are copied. */
VISQ_API visq_status visq_open_memory(const void* bytes, size_t size, const visq_options* options, visq_net* net);

VISQ_API visq_status visq_input_info(visq_net net, visq_input* info);
VISQ_API visq_status visq_output_info(visq_net net, visq_output* info);

/* Copies a text: the name of a class, or one of "model", "recipe", "level", "version" (of the visq that wrote the file).
 * Cuts it off at `size` bytes, of which the last is 0. */
VISQ_API visq_status visq_class_name(visq_net net, int64_t index, char* text, size_t size);
VISQ_API visq_status visq_text(visq_net net, const char* key, char* text, size_t size);

/* Runs pixels [batch, height, width, 3], RGB, 8 bits a value, row by row from the top; they must have the network's height
 * and width. A grey network takes 0.299 R + 0.587 G + 0.114 B, rounded as Pillow does. Writes logits [batch, size] into
 * `logits`, which has `count` floats. `threads`: 1 to 1024. */
VISQ_API visq_status visq_run_rgb8(visq_net net, const uint8_t* pixels, int64_t batch, int64_t height, int64_t width,
                                   float* logits, size_t count, int32_t threads);

/* Runs normalized images [batch, channels, height, width] float32, of `floats` values in all. */
VISQ_API visq_status visq_run(visq_net net, const float* images, int64_t batch, size_t floats, float* logits, size_t count,
                              int32_t threads);

/* Closes a net and frees its memory, once runs of other threads have ended. */
VISQ_API visq_status visq_close(visq_net net);

/* What went wrong in the calling thread's last call that failed; "" where none has. Valid until the thread's next call. */
VISQ_API const char* visq_error(void);

/* "0.1.0". */
VISQ_API const char* visq_version(void);

#ifdef __cplusplus
}
#endif

#endif

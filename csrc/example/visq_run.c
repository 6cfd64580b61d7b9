/* visq-run NET.visq IMAGE: prints the likeliest classes and the time, or writes the image that a network returns. An example
 * of visq.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "image.h"
#include "visq.h"

enum { TOP = 5 };

static int usage(void) {
  fputs("visq-run NET.visq IMAGE.ppm|png [-o OUT.ppm|pgm] [--threads N] [--repeat N] [--level NAME] [--logits]\n"
        "  -o FILE       where the image goes that a network returns: enlarged, or the number of each pixel's class\n"
        "  --repeat N    runs N times and prints the median\n"
        "  --level NAME  the instruction set, by default the fastest\n"
        "  --logits      writes the result as it lies in memory, float32, and nothing else\n",
        stderr);
  return 2;
}

static int failed(const char* what, const char* why) {
  fprintf(stderr, "visq-run: %s: %s\n", what, why);
  return 1;
}

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static int by_size(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void print_top(visq_net net, const float* logits, int64_t size) {
  char* taken = calloc((size_t)size, 1);
  for (int rank = 0; taken && rank < TOP && rank < size; ++rank) {
    int64_t best = -1;
    char name[128];
    for (int64_t i = 0; i < size; ++i)
      if (!taken[i] && (best < 0 || logits[i] > logits[best])) best = i;
    taken[best] = 1;
    if (visq_class_name(net, best, name, sizeof name)) snprintf(name, sizeof name, "class %lld", (long long)best);
    printf("%9.4f  %s\n", (double)logits[best], name);
  }
  free(taken);
}

/* The bytes of a returned image: pixels in 0..1 times 255, rounded, or the number of the likeliest class. NULL where there is
 * no memory for them. */
static uint8_t* bytes_of(const float* values, const visq_output* output, int classes) {
  const int64_t pixels = output->height * output->width, channels = output->channels;
  uint8_t* bytes = malloc((size_t)(classes ? pixels : output->size));
  if (!bytes) return NULL;
  for (int64_t i = 0; i < (classes ? pixels : output->size); ++i) {
    int64_t best = 0;
    if (classes) {
      for (int64_t c = 1; c < channels; ++c)
        if (values[i * channels + c] > values[i * channels + best]) best = c;
      bytes[i] = (uint8_t)best;
    } else {
      const float x = values[i];
      bytes[i] = (uint8_t)lrintf((x > 0 ? x < 1 ? x : 1 : 0) * 255.0f);
    }
  }
  return bytes;
}

static const char* save(const char* path, const float* values, const visq_output* output) {
  const int classes = output->classes || (output->channels != 1 && output->channels != 3);
  uint8_t* bytes;
  const char* error;
  if (classes && output->channels > 256) return "a network of more than 256 classes has no image of bytes";
  bytes = bytes_of(values, output, classes);
  if (!bytes) return "there is not enough memory";
  error = write_image(path, (int)output->width, (int)output->height, classes ? 1 : (int)output->channels, bytes);
  free(bytes);
  return error;
}

int main(int argc, char** argv) {
  int threads = 1, repeat = 1, raw = 0;
  const char *paths[2] = {NULL, NULL}, *out = NULL, *error;
  int given = 0;
  visq_options options = {NULL};
  visq_net net;
  visq_input input;
  visq_output output;
  image picture;
  float* logits;
  double *times, start;

  for (int i = 1; i < argc; ++i) {
    if (!strcmp(argv[i], "--threads") && i + 1 < argc) threads = atoi(argv[++i]);
    else if (!strcmp(argv[i], "--repeat") && i + 1 < argc) repeat = atoi(argv[++i]);
    else if (!strcmp(argv[i], "--level") && i + 1 < argc) options.level = argv[++i];
    else if (!strcmp(argv[i], "-o") && i + 1 < argc) out = argv[++i];
    else if (!strcmp(argv[i], "--logits")) raw = 1;
    else if (argv[i][0] == '-' || given == 2) return usage();
    else paths[given++] = argv[i];
  }
  if (given != 2 || repeat < 1 || repeat > 1000000) return usage();

  start = milliseconds();
  if (visq_open(paths[0], &options, &net)) return failed(paths[0], visq_error());
  const double opened = milliseconds() - start;
  if (visq_input_info(net, &input) || visq_output_info(net, &output)) return failed(paths[0], visq_error());
  if (output.channels && !out && !raw) return failed(paths[0], "this network returns an image; -o names its file");
  if (!output.channels && out) return failed(paths[0], "this network returns classes, and no image to write");
  error = read_image(paths[1], &picture);
  if (!error) error = fit_image(&picture, &input);
  if (error) return failed(paths[1], error);

  logits = calloc((size_t)output.size, sizeof *logits);
  times = calloc((size_t)repeat, sizeof *times);
  if (!logits || !times) return failed(paths[1], "there is not enough memory");
  for (int i = 0; i < repeat; ++i) {
    start = milliseconds();
    if (visq_run_rgb8(net, picture.pixels, 1, picture.height, picture.width, logits, (size_t)output.size, threads))
      return failed(paths[1], visq_error());
    times[i] = milliseconds() - start;
  }
  if (raw) {
    fwrite(logits, sizeof *logits, (size_t)output.size, stdout);
  } else {
    char model[128], recipe[128], level[32];
    visq_text(net, "model", model, sizeof model);
    visq_text(net, "recipe", recipe, sizeof recipe);
    visq_text(net, "level", level, sizeof level);
    error = out ? save(out, logits, &output) : NULL;
    if (error) return failed(out, error);
    if (!out) print_top(net, logits, output.size);
    qsort(times, (size_t)repeat, sizeof *times, by_size);
    printf("%s, %s: opened in %.1f ms, ran in %.2f ms (%s, %d thread%s)\n", model, recipe, opened, times[repeat / 2],
           level, threads, threads == 1 ? "" : "s");
  }
  free(logits), free(times), free(picture.pixels);
  return visq_close(net) ? failed(paths[0], visq_error()) : 0;
}

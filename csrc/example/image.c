#include "image.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef VISQ_HAS_PNG
#include <png.h>
#endif

enum { MOST_PIXELS = 1 << 28, LONGEST = 64, MOST_RESIZED = 1 << 26, PRECISION = 22 };

static int next_number(FILE* file) {
  int c = fgetc(file), value = 0, digits = 0;
  while (c == '#' || isspace(c)) {
    if (c == '#')
      while (c != '\n' && c != EOF) c = fgetc(file);
    c = fgetc(file);
  }
  for (; isdigit(c) && digits < 9; c = fgetc(file), ++digits) value = 10 * value + (c - '0');
  return digits ? value : -1; /* the one blank after a number is read */
}

static const char* read_pnm(FILE* file, int channels, image* found) {
  const int width = next_number(file), height = next_number(file), largest = next_number(file);
  size_t count;
  if (width < 1 || height < 1 || largest != 255) return "its header is not that of a PPM of 8 bits";
  if (width > MOST_PIXELS / height) return "it has too many pixels";
  count = (size_t)width * (size_t)height;
  found->width = width, found->height = height, found->pixels = malloc(3 * count);
  if (!found->pixels) return "there is not enough memory";
  if (fread(found->pixels, (size_t)channels, count, file) != count) return "it ends early";
  if (channels == 1)
    while (count--) memset(found->pixels + 3 * count, found->pixels[count], 3);
  return NULL;
}

static const char* read_png(const char* path, image* found) {
#ifdef VISQ_HAS_PNG
  const png_color white = {255, 255, 255};
  png_image png;
  memset(&png, 0, sizeof png);
  png.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_file(&png, path)) return "it is no PNG that libpng can read";
  png.format = PNG_FORMAT_RGB;
  if (png.width > (unsigned)MOST_PIXELS / png.height) return png_image_free(&png), "it has too many pixels";
  found->width = (int)png.width, found->height = (int)png.height;
  found->pixels = malloc(PNG_IMAGE_SIZE(png));
  if (!found->pixels) return png_image_free(&png), "there is not enough memory";
  return png_image_finish_read(&png, &white, found->pixels, 0, NULL) ? NULL : "it is a damaged PNG";
#else
  (void)path, (void)found;
  return "this visq-run was built without libpng, so it reads PPM only";
#endif
}

const char* read_image(const char* path, image* found) {
  unsigned char head[2];
  const char* error = "it is neither a binary PPM (P6, P5) nor a PNG";
  FILE* file = fopen(path, "rb");
  found->pixels = NULL;
  if (!file) return "it cannot be opened";
  if (fread(head, 1, 2, file) == 2) {
    if (head[0] == 'P' && (head[1] == '6' || head[1] == '5')) error = read_pnm(file, head[1] == '6' ? 3 : 1, found);
    if (head[0] == 0x89 && head[1] == 'P') error = read_png(path, found);
  }
  fclose(file);
  if (error) free(found->pixels), found->pixels = NULL;
  return error;
}

/* Cuts out a rectangle, in place. */
static void crop(image* i, int left, int top, int width, int height) {
  for (int y = 0; y < height; ++y)
    memmove(i->pixels + (size_t)3 * width * y, i->pixels + (size_t)3 * ((size_t)i->width * (y + top) + left),
            (size_t)3 * width);
  i->width = width, i->height = height;
}

static double weight(int bicubic, double x) {
  const double a = -0.5;
  x = fabs(x);
  if (!bicubic) return x < 1 ? 1 - x : 0;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/* Pillow's resampling of 8 bits along one axis: `step` bytes from pixel to pixel of the axis, of `lines` lines. */
static const char* resample(const uint8_t* from, uint8_t* to, int in, int out, int bicubic, int lines, size_t in_step,
                            size_t in_line, size_t out_step, size_t out_line) {
  const double scale = (double)in / out, filter = scale < 1 ? 1 : scale, support = (bicubic ? 2 : 1) * filter;
  const int taps = (int)ceil(support) * 2 + 1;
  double* exact = malloc(sizeof(double) * (size_t)taps);
  int32_t* whole = malloc(sizeof(int32_t) * (size_t)taps);
  for (int x = 0; exact && whole && x < out; ++x) {
    const double centre = (x + 0.5) * scale;
    int first = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
    double sum = 0;
    if (first < 0) first = 0;
    if (end > in) end = in;
    for (int i = first; i < end; ++i) sum += exact[i - first] = weight(bicubic, (i - centre + 0.5) * (1 / filter));
    for (int i = 0; i < end - first; ++i) {
      const double share = (sum != 0 ? exact[i] / sum : exact[i]) * (1 << PRECISION);
      whole[i] = (int32_t)(share < 0 ? share - 0.5 : share + 0.5);
    }
    for (int line = 0; line < lines; ++line)
      for (int c = 0; c < 3; ++c) {
        int32_t total = 1 << (PRECISION - 1);
        for (int i = first; i < end; ++i) total += from[line * in_line + i * in_step + c] * whole[i - first];
        total = total < 0 ? 0 : total >> PRECISION;
        to[line * out_line + x * out_step + c] = (uint8_t)(total > 255 ? 255 : total);
      }
  }
  const char* error = exact && whole ? NULL : "there is not enough memory";
  free(exact), free(whole);
  return error;
}

/* One pass: to `out` columns, or with `rows` to `out` rows. */
static const char* pass(image* i, int out, int rows, int bicubic) {
  const int width = rows ? i->width : out, height = rows ? out : i->height;
  const size_t line = (size_t)3 * i->width, new_line = (size_t)3 * width;
  const char* error;
  uint8_t* found;
  if (out == (rows ? i->height : i->width)) return NULL;
  found = malloc(new_line * height);
  if (!found) return "there is not enough memory";
  error = rows ? resample(i->pixels, found, i->height, out, bicubic, width, line, 3, new_line, 3)
               : resample(i->pixels, found, i->width, out, bicubic, height, 3, line, 3, new_line);
  if (error) return free(found), error;
  free(i->pixels);
  i->pixels = found, i->width = width, i->height = height;
  return NULL;
}

/* In the order of Pillow 13: rows first where they lose more than twice as many pixels as columns do. */
static const char* resize(image* i, int width, int height, int bicubic) {
  const int rows_first = height < i->height && i->height - height > 2 * (i->width - width);
  const char* error = pass(i, rows_first ? height : width, rows_first, bicubic);
  return error ? error : pass(i, rows_first ? width : height, !rows_first, bicubic);
}

/* Half of what is left beside `size` pixels, rounded to even as Python does. */
static int margin(int side, int size) {
  const int half = (side - size) / 2;
  return (side - size) % 2 && half % 2 ? half + 1 : half;
}

const char* write_image(const char* path, int width, int height, int channels, const uint8_t* pixels) {
  const size_t count = (size_t)channels * (size_t)width * (size_t)height;
  FILE* file = fopen(path, "wb");
  int written;
  if (!file) return "it cannot be written";
  written = fprintf(file, "P%d\n%d %d\n255\n", channels == 3 ? 6 : 5, width, height) > 0 &&
            fwrite(pixels, 1, count, file) == count;
  return (fclose(file) == 0) & written ? NULL : "it cannot be written";
}

const char* fit_image(image* i, const visq_input* input) {
  const int size = (int)input->height, short_side = (int)input->resize;
  const int least = i->width < i->height ? i->width : i->height;
  long long most, keep;
  if (input->channels == 1) /* grey first, as Pillow's mode L is resized */
    for (size_t p = 0; p < (size_t)i->width * (size_t)i->height; ++p) {
      uint8_t* rgb = i->pixels + 3 * p;
      memset(rgb, (int)((19595u * rgb[0] + 38470u * rgb[1] + 7471u * rgb[2] + 0x8000u) >> 16), 3);
    }
  if (!short_side)
    return i->width == input->width && i->height == input->height ? NULL : "it has not the size that the network takes";
  most = MOST_RESIZED / ((long long)short_side * short_side);
  most = most > LONGEST ? LONGEST : most < 2 ? 2 : most;
  keep = most * least;
  {
    const int left = i->width > keep ? (int)(i->width - keep) / 2 : 0, top = i->height > keep ? (int)(i->height - keep) / 2 : 0;
    if (left || top) crop(i, left, top, i->width - 2 * left, i->height - 2 * top);
  }
  if (least != short_side) {
    const double longer = i->width < i->height ? i->height : i->width;
    const int other = (int)((double)((long long)short_side * (long long)longer) / least);
    const char* error = i->width <= i->height ? resize(i, short_side, other, input->bicubic)
                                              : resize(i, other, short_side, input->bicubic);
    if (error) return error;
  }
  crop(i, margin(i->width, size), margin(i->height, size), size, size);
  return NULL;
}

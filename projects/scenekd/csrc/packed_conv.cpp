// Convolution of ±1 activations with ±1 weights by XNOR and popcount, and all that follows it up to the next signs.
//
// N images, H × W cells, C channels, O filters, R × S taps. One bit a value, 1 for +1, channels along the bits:
//   activations  uint32 [N][H + 2b][W + 2b][words], words = ceil(C / 32); a border of b cells of zero bits
//   weights      uint32 [ceil(O / 16)][R][S][words][16]: sixteen filters side by side, one to a lane
// Of n products of ±1, p of which differ in sign, the sum is n - 2p. A cell of the border has all bits zero but stands
// for the value 0; `padding` puts back what its bits counted, so that a border is exact.
// Affine steps are rounded one by one (build with -ffp-contract=off), as the float network does them.

#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));

template <class Vector, class Scalar>
inline Vector load(const Scalar* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(Vector));
  return value;
}

// At the end of a row of channels: the first n lanes, the others zero.
inline Floats load_first(const float* from, int n) {
  if (n == LANES) return load<Floats>(from);
  Floats value = {};
  std::memcpy(&value, from, n * sizeof(float));
  return value;
}

inline void store_first(float* to, Floats value, int n) {
  if (n == LANES)
    std::memcpy(to, &value, sizeof value);
  else
    std::memcpy(to, &value, n * sizeof(float));
}

#if defined(__AVX512VPOPCNTDQ__)
constexpr int PIXELS = 4, BLOCKS = 4;  // sixteen sums in registers
inline Words count_bits(Words x) { return (Words)_mm512_popcnt_epi32((__m512i)x); }
#elif defined(__AVX2__)
constexpr int PIXELS = 2, BLOCKS = 2;
inline __m256i count_half(__m256i x) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i bytes = _mm256_add_epi8(
      _mm256_shuffle_epi8(table, _mm256_and_si256(x, low)),
      _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}
inline Words count_bits(Words x) {
  __m256i half[2];
  std::memcpy(half, &x, sizeof x);
  half[0] = count_half(half[0]);
  half[1] = count_half(half[1]);
  return load<Words>(reinterpret_cast<const uint32_t*>(half));
}
#else
constexpr int PIXELS = 2, BLOCKS = 1;
inline Words count_bits(Words x) {  // sums of neighbours: pairs, fours, bytes, words
  x -= (x >> 1) & 0x55555555u;
  x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0fu;
  return (x * 0x01010101u) >> 24;
}
#endif

// Bit i: x[i] >= least[i], false for NaN.
inline uint16_t signs(Floats x, Floats least) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)least, _CMP_GE_OQ);
#else
  const Ints mask = x >= least;
  uint32_t bits = 0;
  for (int lane = 0; lane < LANES; ++lane) bits |= (mask[lane] & 1u) << lane;
  return static_cast<uint16_t>(bits);
#endif
}

inline int words_of(int channels) { return (channels + 31) / 32; }

}  // namespace

extern "C" {

// What is fixed in a layer. Arrays over filters are filled up with zeros to a multiple of 16.
struct Layer {
  int32_t channels, filters, taps_y, taps_x, stride, pad;
  const uint32_t* weights;
  const int32_t* padding;  // [R][S][O]: 2 · popcount(weights of the tap) - C
  const float* alpha;      // the filter's scale
  const float* scale;      // of the normalisation: y · scale + bias
  const float* bias;
  const float* before;  // RPReLU: (y + before), its negative values times slope, + after; or all null
  const float* slope;
  const float* after;
};

// What a call reads and writes.
struct Call {
  int32_t images, height, width, border;  // of the input, and of its buffer
  int32_t out_border;
  const uint32_t* bits;
  const float* pixel_scale;  // [N][H'][W'] or null
  const float* shortcut;     // [N][H'][W'][O] or null; may be `out`
  float* out;                // [N][H'][W'][O] or null
  const float* least;        // [O] or null: a bit is set where the output is at least this
  uint32_t* out_bits;        // with `least`
};

// float [N][H][W][C] → bits in a buffer with a border; bit c is x >= least[c] (least: C filled up to 16s).
void scenekd_pack(const float* x, const float* least, uint32_t* bits, int images, int height, int width, int channels,
                  int border) {
  const int words = words_of(channels), row = (width + 2 * border) * words;
  for (int n = 0; n < images; ++n)
    for (int y = 0; y < height; ++y) {
      uint32_t* to = bits + (static_cast<int64_t>(n) * (height + 2 * border) + y + border) * row + border * words;
      for (int i = 0; i < width; ++i, to += words, x += channels)
        for (int c = 0; c < channels; c += LANES) {
          const int lanes = channels - c < LANES ? channels - c : LANES;
          const uint32_t kept = (1u << lanes) - 1;
          reinterpret_cast<uint16_t*>(to)[c / LANES] =
              signs(load_first(x + c, lanes), load<Floats>(least + c)) & kept;
        }
    }
}

// Largest of each 2 × 2 cells (a rest of one row or column is left out), between buffers with borders: an OR of bits.
void scenekd_pool(const uint32_t* bits, uint32_t* out, int images, int height, int width, int channels, int border,
                  int out_border) {
  const int words = words_of(channels), row = (width + 2 * border) * words;
  const int h = height / 2, w = width / 2, out_row = (w + 2 * out_border) * words;
  for (int n = 0; n < images; ++n)
    for (int y = 0; y < h; ++y) {
      const uint32_t* from = bits + (static_cast<int64_t>(n) * (height + 2 * border) + 2 * y + border) * row +
                             border * words;
      uint32_t* to = out + (static_cast<int64_t>(n) * (h + 2 * out_border) + y + out_border) * out_row +
                     out_border * words;
      for (int x = 0; x < w; ++x, from += 2 * words, to += words)
        for (int k = 0; k < words; ++k) to[k] = from[k] | from[words + k] | from[row + k] | from[row + words + k];
    }
}

}  // extern "C"

namespace {

struct Pixel {
  int64_t from;   // its first tap's word among the bits
  int64_t index;  // among the outputs
  int64_t to;     // its word among the output's bits
  int y, x;       // of its first tap; negative in the border
  bool inside;
};

struct Work {
  const Layer& layer;
  const Call& call;
  int out_height, out_width, words, out_words;

  Work(const Layer& layer, const Call& call)
      : layer(layer),
        call(call),
        out_height((call.height + 2 * layer.pad - layer.taps_y) / layer.stride + 1),
        out_width((call.width + 2 * layer.pad - layer.taps_x) / layer.stride + 1),
        words(words_of(layer.channels)),
        out_words(words_of(layer.filters)) {}

  int64_t row() const { return static_cast<int64_t>(call.width + 2 * call.border) * words; }

  std::vector<Pixel> pixels() const {
    const int b = call.border, ob = call.out_border;
    std::vector<Pixel> all(static_cast<size_t>(call.images) * out_height * out_width);
    Pixel* p = all.data();
    for (int64_t n = 0; n < call.images; ++n)
      for (int out_y = 0; out_y < out_height; ++out_y) {
        const int y = out_y * layer.stride - layer.pad;
        const bool inside = y >= 0 && y + layer.taps_y <= call.height;
        const int64_t from = (n * (call.height + 2 * b) + y + b) * row();
        const int64_t to = ((n * (out_height + 2 * ob) + out_y + ob) * (out_width + 2 * ob) + ob) * out_words;
        for (int out_x = 0; out_x < out_width; ++out_x, ++p) {
          const int x = out_x * layer.stride - layer.pad;
          p->from = from + (x + b) * words;
          p->index = p - all.data();
          p->to = to + out_x * out_words;
          p->y = y;
          p->x = x;
          p->inside = inside && x >= 0 && x + layer.taps_x <= call.width;
        }
      }
    return all;
  }

  // What the zero bits of the border added to n - 2p, to be put back; for filters first … first + 15.
  Ints border(const Pixel& p, int first) const {
    Ints sum = {};
    const int filters = (layer.filters + LANES - 1) / LANES * LANES;
    for (int r = 0; r < layer.taps_y; ++r)
      for (int s = 0; s < layer.taps_x; ++s) {
        const int y = p.y + r, x = p.x + s;
        if (y < 0 || x < 0 || y >= call.height || x >= call.width)
          sum += load<Ints>(layer.padding + static_cast<int64_t>(r * layer.taps_x + s) * filters + first);
      }
    return sum;
  }

  // All after the counts, for filters first … first + 15 of COUNT pixels; the filter's constants are read once.
  template <int COUNT>
  void finish(const Pixel* pixels, int first, const Words* differ) const {
    const int total = layer.taps_y * layer.taps_x * layer.channels;
    const int lanes = layer.filters - first < LANES ? layer.filters - first : LANES;
    const Floats alpha = load<Floats>(layer.alpha + first);
    const Floats scale = load<Floats>(layer.scale + first), bias = load<Floats>(layer.bias + first);
    const bool acts = layer.slope, signed_after = call.least;
    const Floats none = {};
    const Floats before = acts ? load<Floats>(layer.before + first) : none;
    const Floats slope = acts ? load<Floats>(layer.slope + first) : none;
    const Floats after = acts ? load<Floats>(layer.after + first) : none;
    const Floats least = signed_after ? load<Floats>(call.least + first) : none;
    for (int i = 0; i < COUNT; ++i) {
      const Pixel& p = pixels[i];
      Ints sum = total - 2 * (Ints)differ[i];
      if (!p.inside) sum += border(p, first);
      Floats y = __builtin_convertvector(sum, Floats) * alpha;
      if (call.pixel_scale) y *= call.pixel_scale[p.index];
      y = y * scale + bias;
      const int64_t at = p.index * layer.filters + first;
      if (call.shortcut) y += load_first(call.shortcut + at, lanes);
      if (acts) {
        y += before;
        y = (y > 0 ? y : y * slope) + after;
      }
      if (call.out) store_first(call.out + at, y, lanes);
      if (signed_after)
        reinterpret_cast<uint16_t*>(call.out_bits + p.to)[first / LANES] = signs(y, least) & ((1u << lanes) - 1);
    }
  }

  // COUNT pixels times B blocks of sixteen filters, from block on.
  template <int B, int COUNT>
  void tile(const Pixel* pixels, int block) const {
    Words sums[B][COUNT] = {};
    const int across = layer.taps_x * words;
    const int64_t step = static_cast<int64_t>(layer.taps_y) * across * LANES;  // words of one block's weights
    const uint32_t* weights = layer.weights + block * step;
    for (int r = 0; r < layer.taps_y; ++r) {
      const uint32_t* rows[COUNT];
      for (int p = 0; p < COUNT; ++p) rows[p] = call.bits + pixels[p].from + r * row();
      for (int k = 0; k < across; ++k, weights += LANES) {
        Words w[B];
        for (int b = 0; b < B; ++b) w[b] = load<Words>(weights + b * step);
        for (int p = 0; p < COUNT; ++p) {
          const uint32_t bits = rows[p][k];
          for (int b = 0; b < B; ++b) sums[b][p] += count_bits(w[b] ^ bits);
        }
      }
    }
    for (int b = 0; b < B; ++b) finish<COUNT>(pixels, (block + b) * LANES, sums[b]);
  }

  template <int B>
  void blocks(int block, const std::vector<Pixel>& pixels) const {
    constexpr int COUNT = B < BLOCKS ? 2 * PIXELS : PIXELS;
    const int64_t count = pixels.size();
    int64_t p = 0;
    for (; p + COUNT <= count; p += COUNT) tile<B, COUNT>(pixels.data() + p, block);
    for (; p < count; ++p) tile<B, 1>(pixels.data() + p, block);
  }

  void run() const {
    const std::vector<Pixel> pixels = this->pixels();
    const int all = (layer.filters + LANES - 1) / LANES;
    // Filters outside, pixels inside: the weights of a block stay in the first cache.
    int block = 0;
    for (; block + BLOCKS <= all; block += BLOCKS) blocks<BLOCKS>(block, pixels);
    for (; BLOCKS > 2 && block + 2 <= all; block += 2) blocks<BLOCKS < 2 ? BLOCKS : 2>(block, pixels);
    for (; block < all; ++block) blocks<1>(block, pixels);
  }
};

}  // namespace

extern "C" void scenekd_convolve(const Layer* layer, const Call* call) { Work(*layer, *call).run(); }

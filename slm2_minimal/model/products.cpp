// Activations times a matrix, y = x W', for few rows of x, mostly one, as one token needs
// it. Every weight is read once a row, in the order in which it lies, and widened in the
// processor's registers: what limits it is memory. `compiled.py` builds this file and says
// what the arguments are.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

static const long BLOCK = 32;  // columns that are multiplied at a time
static const long AHEAD = 2048;  // bytes that are asked for early: over the end of a page

// the same 32 bits, read as another type
template <typename To, typename From>
static inline To as(From value) {
    To result;
    memcpy(&result, &value, 4);
    return result;
}

static inline float widened(float value) { return value; }
static inline float widened(uint16_t bf16) { return as<float>(uint32_t(bf16) << 16); }

static inline __m256i load(const void* at) { return _mm256_loadu_si256((const __m256i*)at); }

// 16 codes of 8 bits as 16 bits each
static inline __m256i widened_codes(const uint8_t* at) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)at));
}

// Weight and activations of one kind: the sum is left to the compiler, which makes
// vectors of it.
template <typename Number>
static void product(
    const Number* weight, const Number* x, float* y, long count, long columns, long rows) {
    #pragma omp parallel for
    for (long n = 0; n < rows; n++) {
        for (long m = 0; m < count; m++) {
            float sum = 0;
            for (long k = 0; k < columns; k++)
                sum += widened(weight[n * columns + k]) * widened(x[m * columns + k]);
            y[m * rows + n] = sum;
        }
    }
}

extern "C" void product_32(
    const float* w, const float* x, float* y, long count, long columns, long rows) {
    product(w, x, y, count, columns, rows);
}

extern "C" void product_16(
    const uint16_t* w, const uint16_t* x, float* y, long count, long columns, long rows) {
    product(w, x, y, count, columns, rows);
}

// Activations become integers too, of twice as many bits as the weights, for which
// processors have products that add neighbours. Each block has a scale.
struct Activations {
    std::vector<int16_t> codes;
    std::vector<int8_t> bytes;  // the same, as products_4 takes them
    std::vector<float> scale, group_sum;

    Activations(const float* x, long columns, long groups, long bits)
        : codes(columns), bytes(columns), scale(columns / BLOCK), group_sum(groups) {
        const float highest = bits == 8 ? 32767 : 127;
        for (long k = 0; k < columns; k += BLOCK) {
            // as integers, for these have a fast maximum, in which infinities and NaN stay
            uint32_t largest_bits = 0;
            for (long i = k; i < k + BLOCK; i++)
                largest_bits = std::max(largest_bits, as<uint32_t>(x[i]) & 0x7FFFFFFF);
            float largest = as<float>(largest_bits);
            float step = scale[k / BLOCK] = largest / highest;
            float inverse = largest > 1e-30f ? highest / largest : 0;

            int code_sum = 0;
            for (long i = k; i < k + BLOCK; i++) {
                codes[i] = int16_t(std::nearbyint(x[i] * inverse));
                code_sum += codes[i];
            }
            group_sum[k / (columns / groups)] += step * code_sum;
        }
        for (long k = 0; k < columns; k += 64)  // the even ones of 64 columns, then the odd
            for (long i = 0; i < 64; i++) bytes[k + i] = codes[k + i % 32 * 2 + i / 32];
    }
};

// 32 products, in eight sums
static inline __m256 products_8(const uint8_t* codes, const int16_t* x) {
    __m256i low = _mm256_madd_epi16(widened_codes(codes), load(x));
    __m256i high = _mm256_madd_epi16(widened_codes(codes + 16), load(x + 16));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(low, high));
}

// 64 products: of the first 32 columns in the first four sums, of the others in the last.
// Every byte holds two codes, each plus 8.
static inline __m256 products_4(const uint8_t* codes, const int8_t* x) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i pairs = load(codes);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
    __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(pairs, low), load(x));
    __m256i b = _mm256_maddubs_epi16(odd, load(x + 32));
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_add_epi16(a, b), ones));
}

static void row_of_codes(
    const uint8_t* codes, const uint16_t* scale, const uint16_t* offset,
    const float* x, float* y, long columns, long rows, long groups, long bits) {
    const Activations q(x, columns, groups, bits);
    const long blocks = columns / BLOCK, per_group = blocks / groups;
    const int16_t* x_codes = q.codes.data();
    const int8_t* x_bytes = q.bytes.data();

    #pragma omp parallel
    {
        std::vector<float> of_block(blocks);
        float* scales = of_block.data();
        #pragma omp for
        for (long n = 0; n < rows; n++) {
            // what offsets add, and what codes that begin at 0 have too much
            float sum = 0;
            for (long g = 0; g < groups; g++) {
                float step = widened(scale[n * groups + g]);
                float zero = offset ? widened(offset[n * groups + g]) : 0;
                scales[g] = step;
                sum += (bits == 4 ? zero - 8 * step : zero) * q.group_sum[g];
            }

            // scales of the weights, of the groups and then of all blocks; then both sides'
            for (long g = groups - 1; g >= 0 && per_group > 1; g--)
                std::fill_n(scales + g * per_group, per_group, float(scales[g]));
            for (long b = 0; b < blocks; b++) scales[b] *= q.scale[b];

            const uint8_t* row = codes + n * columns * bits / 8;
            __m256 sums = _mm256_setzero_ps();
            if (bits == 8) {
                for (long b = 0; b < blocks; b++) {
                    __m256 products = products_8(row + 32 * b, x_codes + 32 * b);
                    sums = _mm256_fmadd_ps(products, _mm256_broadcast_ss(scales + b), sums);
                }
            } else {
                for (long b = 0; b < blocks; b += 2) {
                    __m256 first = _mm256_broadcast_ss(scales + b);
                    __m256 second = _mm256_broadcast_ss(scales + b + 1);
                    _mm_prefetch((const char*)(row + 16 * b + AHEAD), _MM_HINT_T0);
                    __m256 products = products_4(row + 16 * b, x_bytes + 32 * b);
                    sums = _mm256_fmadd_ps(products, _mm256_blend_ps(first, second, 0xF0), sums);
                }
            }
            float lanes[8];
            _mm256_storeu_ps(lanes, sums);
            for (float lane : lanes) sum += lane;
            y[n] = sum;
        }
    }
}

extern "C" void product_of_codes(
    const uint8_t* codes, const uint16_t* scale, const uint16_t* offset,
    const float* x, float* y, long count, long columns, long rows, long groups, long bits) {
    for (long m = 0; m < count; m++)
        row_of_codes(
            codes, scale, offset, x + m * columns, y + m * rows, columns, rows, groups, bits);
}

/* The small operations of a bf16 decode step on a CPU, each as one pass over memory. Knows rows, blocks and slots;
 * nothing of layers, sequences or experts.
 *
 * A step of a small model is bound by how many operations it has and how often it copies. So what torch needs a dozen
 * operations for is one function here, and keys, values and experts' terms are read where they lie. All sums are fp32.
 * Tests hold each against the same in torch.
 *
 * bf16 numbers are the upper halves of fp32 numbers. Loops over a row are left to the compiler to vectorise, but for those
 * of attention and of experts' terms, which hold many sums at once.
 * Compiled with -fopenmp but not linked to an OpenMP library: the calls go to the one torch has loaded, so that there
 * is one team of threads (see server.threads).
 */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

enum { SMALL = 1 << 15 }; /* numbers that one thread has done before a second one is awake */

static inline float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static inline bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* to nearest, ties to even */
    uint32_t nan = bits >> 16 | 0x40;
    return (bf16)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

/* As torch's nan_to_num: NaN is 0, an infinity the largest number. */
static inline bf16 cleaned(bf16 x) {
    bf16 magnitude = x & 0x7fff;
    if (magnitude > 0x7f80) return 0;
    return magnitude == 0x7f80 ? (bf16)(x - 1) : x;
}

/* e^x for x <= 0, to a few units in the last place: 2^n times a polynomial for the fraction; NaN stays NaN. */
static inline float exp_negative(float x) {
    float y = x * 1.44269504f;
    y = y < -126.0f ? -126.0f : y;
    float n = floorf(y + 0.5f), f = (y - n) * 0.693147181f;
    float p = 1.0f + f * (1.0f + f * (0.5f + f * (1.0f / 6 + f * (1.0f / 24 + f * (1.0f / 120 + f * (1.0f / 720))))));
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* sum += delta where there is one, then out = sum / rms(sum) * weight; all [rows, width]. */
void add_norm(bf16 *sum, const bf16 *delta, const bf16 *weight, bf16 *out, int64_t rows, int64_t width, float epsilon) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t r = 0; r < rows; r++) {
        bf16 *s = sum + r * width, *o = out + r * width;
        if (delta)
            for (int64_t i = 0; i < width; i++) s[i] = narrow(wide(s[i]) + wide(delta[r * width + i]));
        float squares = 0;
        for (int64_t i = 0; i < width; i++) squares += wide(s[i]) * wide(s[i]);
        float factor = 1.0f / sqrtf(squares / (float)width + epsilon);
        for (int64_t i = 0; i < width; i++) o[i] = narrow(wide(s[i]) * factor * wide(weight[i]));
    }
}

/* out = silu(gate) * up; gate_up [rows, 2 * width] holds the gates of a row, then its ups. */
void swiglu(const bf16 *gate_up, bf16 *out, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *gate = gate_up + r * 2 * width, *up = gate + width;
        for (int64_t i = 0; i < width; i++) {
            float g = wide(gate[i]), e = exp_negative(-fabsf(g)); /* silu(g) = g / (1 + e^-g), of a number that fits */
            out[r * width + i] = narrow(g * (g < 0 ? e : 1.0f) / (1.0f + e) * wide(up[i]));
        }
    }
}

/* Rotates the first `rotated` of a row's heads in place, then writes the last 2 * kv_heads into the cache, cleaned.
 *
 * qkv [tokens, heads, D]; cos and signed sin [tokens, D], so that rotating x is x * cos + roll(x, D / 2) * sin;
 * head h of token t goes to cache row place[t] + h * block_tokens, rows of D numbers. */
void rotate_and_store(bf16 *qkv, const float *cos, const float *sin, bf16 *cache, const int64_t *place, int64_t tokens,
                      int64_t heads, int64_t rotated, int64_t kv_heads, int64_t D, int64_t block_tokens) {
#pragma omp parallel for if (tokens * heads * D > SMALL)
    for (int64_t t = 0; t < tokens; t++) {
        bf16 *row = qkv + t * heads * D;
        const float *c = cos + t * D, *s = sin + t * D;
        for (int64_t h = 0; h < rotated; h++) {
            bf16 *x = row + h * D;
            for (int64_t i = 0; i < D / 2; i++) {
                float low = wide(x[i]), high = wide(x[i + D / 2]);
                x[i] = narrow(low * c[i] + high * s[i]);
                x[i + D / 2] = narrow(high * c[i + D / 2] + low * s[i + D / 2]);
            }
        }
        for (int64_t h = 0; h < 2 * kv_heads; h++) {
            const bf16 *from = row + (heads - 2 * kv_heads + h) * D;
            bf16 *to = cache + (place[t] + h * block_tokens) * D;
            for (int64_t i = 0; i < D; i++) to[i] = cleaned(from[i]);
        }
    }
}

/* The first n tokens of every head of block `source` also in block `target`, for each (source, target, n) of `copies`;
 * a block holds `heads` times [block_tokens, D] numbers. */
void copy_tokens(bf16 *cache, const int64_t *copies, int64_t num, int64_t heads, int64_t block_tokens, int64_t D) {
#pragma omp parallel for if (num * heads * block_tokens * D > SMALL)
    for (int64_t i = 0; i < num; i++) {
        const bf16 *from = cache + copies[3 * i] * heads * block_tokens * D;
        bf16 *to = cache + copies[3 * i + 1] * heads * block_tokens * D;
        for (int64_t h = 0; h < heads; h++)
            memcpy(to + h * block_tokens * D, from + h * block_tokens * D, (size_t)(copies[3 * i + 2] * D) * sizeof *to);
    }
}

/* Vectors of as many numbers as a register holds. A pair of bf16 numbers is one 32-bit word; splitting words into their
 * lower and upper numbers is cheaper than widening numbers in order, and sums do not care.
 * KEYS, VALUES: vectors of turned keys that are scored and of values that are mixed at once, as many as registers hold.
 * ZIPPED: which words of two vectors make the one that has theirs in turn, from word i on; EVERY_SECOND: which make the one
 * that has every second of theirs, from word i on. */
#ifdef __AVX512F__
enum { VECTOR_BYTES = 64, KEYS = 4, VALUES = 4 };
#define ZIPPED(i) ZIPPED_4(i), ZIPPED_4(i + 4)
#define EVERY_SECOND(i) SECONDS_8(i), SECONDS_8(i + 16)
#else
enum { VECTOR_BYTES = 32, KEYS = 2, VALUES = 2 };
#define ZIPPED(i) ZIPPED_4(i)
#define EVERY_SECOND(i) SECONDS_8(i)
#endif
enum { PAIRS = VECTOR_BYTES / 4, NUMBERS = 2 * PAIRS, TOKENS = 4, ROWS = 4, SPAN = 2 };
#define ZIPPED_4(i) i, PAIRS + i, i + 1, PAIRS + i + 1, i + 2, PAIRS + i + 2, i + 3, PAIRS + i + 3
#define SECONDS_8(i) i, i + 2, i + 4, i + 6, i + 8, i + 10, i + 12, i + 14
typedef uint32_t words __attribute__((vector_size(VECTOR_BYTES)));
typedef float floats __attribute__((vector_size(VECTOR_BYTES)));

static inline words load(const bf16 *from) {
    words w;
    memcpy(&w, from, sizeof w);
    return w;
}

static inline float total(floats x) {
    float sum = 0;
    for (int i = 0; i < PAIRS; i++) sum += x[i];
    return sum;
}

static inline floats lower(words w) { return (floats)(w << 16); }
static inline floats upper(words w) { return (floats)(w & 0xffff0000u); }

/* `narrow` of every number, in the upper halves. */
static inline words rounded(floats x) {
    words bits = (words)x, nan = (words)((bits & 0x7fffffffu) > 0x7f800000u);
    return (((bits + 0x7fff + (bits >> 16 & 1)) & ~nan) | ((bits | 0x400000) & nan)) & 0xffff0000u;
}

/* Products for processors that do not multiply bf16 numbers themselves, and for weights in bytes: x in fp32, weights widened
 * as they are read.
 *
 * A weight [O, I] lies in panels of NUMBERS columns of the output, [I, NUMBERS] each, the last one filled up. Its numbers are
 * bf16, or, where there are scales, bytes, of which each stands for so many times its column's scale. HEIGHT rows of x
 * are multiplied with a panel at a time: as many sums as there are registers. Every output is summed in the same order,
 * however many rows there are, so that it does not depend on them. */
enum { HEIGHT = 6, ABREAST = 4, NEAR = 1 << 16, LEAD = 512 }; /* LEAD: bytes */

int64_t panel_width(void) { return NUMBERS; }

/* So many signed bytes as a register holds floats, as floats. */
static inline floats load_bytes(const char *from) {
#ifdef __AVX512F__
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#else
    return (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadu_si64(from)));
#endif
}

static inline floats load_floats(const float *from) {
    floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

/* y [rows, O] of so many panels from `column` on; x [I, rows].
 * What is needed next is fetched meanwhile: one panel is read for all rows, so its successor comes by `step` bytes for each
 * row of it from `next` on; several are read once, and fetched LEAD ahead. */
static inline __attribute__((always_inline)) void multiply_block(const float *x, const char *panel, const float *scale,
                                                                 const bf16 *bias, bf16 *y, int64_t I, int64_t O,
                                                                 int64_t column, const char *next, int64_t step,
                                                                 const int rows, const int panels, const int in_bytes) {
    floats low[HEIGHT][ABREAST] = {0}, high[HEIGHT][ABREAST] = {0};
    const int64_t size = NUMBERS * (in_bytes ? 1 : (int)sizeof(bf16));
#pragma GCC unroll 4
    for (int64_t i = 0; i < I; i++) {
        if (panels == 1) __builtin_prefetch(next + i * step);
        for (int p = 0; p < panels; p++) {
            const char *from = panel + (p * I + i) * size;
            floats one, other; /* halves of the panel's columns: bf16 even and odd ones, bytes the first and the last */
            if (in_bytes) {
                one = load_bytes(from), other = load_bytes(from + PAIRS);
            } else {
                words w = load((const bf16 *)from);
                one = lower(w), other = upper(w);
            }
            if (panels > 1) __builtin_prefetch(from + LEAD);
            for (int r = 0; r < rows; r++) {
                low[r][p] += x[i * rows + r] * one;
                high[r][p] += x[i * rows + r] * other;
            }
        }
    }
    for (int p = 0; p < panels; p++) {
        int64_t from = column + p * NUMBERS, width = O - from < NUMBERS ? O - from : NUMBERS;
        words b = {0};
        if (bias) memcpy(&b, bias + from, (size_t)width * sizeof *bias);
        for (int r = 0; r < rows; r++) {
            floats l = low[r][p], h = high[r][p];
            if (in_bytes) {
                floats first = l * load_floats(scale + from), last = h * load_floats(scale + from + PAIRS);
                l = __builtin_shuffle(first, last, (words){EVERY_SECOND(0)});
                h = __builtin_shuffle(first, last, (words){EVERY_SECOND(1)});
            }
            words out = rounded(h + upper(b)) | rounded(l + lower(b)) >> 16;
            memcpy(y + r * O + from, &out, width == NUMBERS ? sizeof out : (size_t)width * sizeof *y);
        }
    }
}

static inline int64_t block_start(int64_t block, int64_t blocks, int64_t rows) { return rows * block / blocks; }

/* y = x W^T + bias; scale and bias may be absent; x [T, I], y [T, O], room for T * I numbers. Rows come in blocks of like
 * height, and as many blocks one after the other as stay in a thread's cache. */
void multiply(const bf16 *x, const char *weight, const float *scale, const bf16 *bias, bf16 *y, int64_t T, int64_t I, int64_t O,
              float *room) {
    int64_t blocks = (T + HEIGHT - 1) / HEIGHT, panels = (O + NUMBERS - 1) / NUMBERS;
    int64_t together = NEAR / (HEIGHT * I) + 1, abreast = T == 1 ? ABREAST : T == 2 ? 2 : 1;
    int64_t line = NUMBERS * (scale ? 1 : (int64_t)sizeof(bf16)), size = I * line;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t start = block_start(b, blocks, T), rows = block_start(b + 1, blocks, T) - start;
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < I; i++) room[start * I + i * rows + r] = wide(x[(start + r) * I + i]);
        }
        for (int64_t first = 0; first < blocks; first += together) {
            int64_t last = first + together < blocks ? first + together : blocks;
#pragma omp for schedule(static) nowait
            for (int64_t p = 0; p < panels; p += abreast) {
                const char *panel = weight + p * size;
                int64_t step = line / (last - first);
                for (int64_t b = first; b < last; b++) {
                    int64_t start = block_start(b, blocks, T), rows = block_start(b + 1, blocks, T) - start;
                    const char *next = panel + size + (b - first) * step * I;
#define MULTIPLY_AS(q, rows, panels, in_bytes) \
    multiply_block(room + start * I, panel + (q) * size, scale, bias, y + start * O, I, O, (p + (q)) * NUMBERS, next, step, \
                   rows, panels, in_bytes)
#define MULTIPLY(q, rows, panels) (scale ? MULTIPLY_AS(q, rows, panels, 1) : MULTIPLY_AS(q, rows, panels, 0))
                    if (rows == 6) MULTIPLY(0, 6, 1);
                    else if (rows == 5) MULTIPLY(0, 5, 1);
                    else if (rows == 4) MULTIPLY(0, 4, 1);
                    else if (rows == 3) MULTIPLY(0, 3, 1);
                    else if (abreast == ABREAST && p + ABREAST <= panels) MULTIPLY(0, 1, ABREAST);
                    else if (abreast == 2 && p + 2 <= panels) MULTIPLY(0, 2, 2);
                    else
                        for (int64_t q = 0; q < abreast && p + q < panels; q++)
                            if (rows == 2) MULTIPLY(q, 2, 1);
                            else MULTIPLY(q, 1, 1);
#undef MULTIPLY
#undef MULTIPLY_AS
                }
            }
        }
    }
}

/* Where `attend` finds things; see there. */
typedef struct {
    const bf16 *query, *cache;
    bf16 *out;
    const int64_t *first, *count, *position, *table_start, *table;
    int64_t query_stride, heads, kv_heads, block_tokens, window;
    float scale;
} Attention;

/* Keys and values of one head in some blocks that follow on each other: enough of them that what is done once for each row
 * and tile matters little. Many rows read them opened: keys turned, [D, stride], so that a vector holds one number of as
 * many keys, and values [tokens, D], in fp32. Few rows are not worth that and read them as they lie in the cache. */
typedef struct {
    float *keys, *values;
    int64_t stride;
    int opened;
    const Attention *call;
    const int64_t *table; /* its blocks, and so many in all to the end of the sequence */
    int64_t left, head;
} Tile;

enum { FEW = 16, NEIGHBOURS = 2, TILE_TOKENS = 64, LINE = 32 }; /* LINE: numbers in a line of the cache */

static inline int64_t blocks_of_a_tile(int64_t block_tokens) {
    return block_tokens < TILE_TOKENS ? TILE_TOKENS / block_tokens : 1;
}

static inline void store_floats(float *to, floats x) { memcpy(to, &x, sizeof x); }

/* In fp32 the numbers of a head lie as `lower` and `upper` split them: of each vector first the even, then the odd ones;
 * those behind the last whole vector in order. */
static inline void split(float *to, const bf16 *from, int64_t D) {
    int64_t i = 0;
    for (; i + NUMBERS <= D; i += NUMBERS) {
        words w = load(from + i);
        store_floats(to + i, lower(w));
        store_floats(to + i + PAIRS, upper(w));
    }
    for (; i < D; i++) to[i] = wide(from[i]);
}

/* Where `split` puts number i. */
static inline int64_t place_of(int64_t i, int64_t D) {
    int64_t at = i % NUMBERS;
    return i < D / NUMBERS * NUMBERS ? i - at + at / 2 + at % 2 * PAIRS : i;
}

/* The keys of a block of the tile, its values kv_heads * block_tokens rows further. */
static inline const bf16 *keys_of(const Tile *tile, int64_t block, int64_t D) {
    const Attention *call = tile->call;
    return call->cache + (tile->table[block] * 2 * call->kv_heads + tile->head) * call->block_tokens * D;
}

/* Turns a square of words: as many rows as a vector has words, zipped in pairs until every word has met every row. */
static inline __attribute__((always_inline)) void transpose(words *row) {
    const words low = {ZIPPED(0)}, high = {ZIPPED(PAIRS / 2)};
    for (int met = 1; met < PAIRS; met *= 2) {
        words zipped[PAIRS];
        for (int i = 0; i < PAIRS / 2; i++) {
            zipped[2 * i] = __builtin_shuffle(row[i], row[i + PAIRS / 2], low);
            zipped[2 * i + 1] = __builtin_shuffle(row[i], row[i + PAIRS / 2], high);
        }
        memcpy(row, zipped, sizeof zipped);
    }
}

/* A block's keys [C, D] as [D, stride], split; whole squares of them at once. */
static inline void turn(float *to, int64_t stride, const bf16 *keys, int64_t C, int64_t D) {
    int64_t whole_C = C / PAIRS * PAIRS, whole_D = D / NUMBERS * NUMBERS;
    for (int64_t k = 0; k < whole_C; k += PAIRS)
        for (int64_t i = 0; i < whole_D; i += NUMBERS) {
            words row[PAIRS];
            for (int n = 0; n < PAIRS; n++) row[n] = load(keys + (k + n) * D + i);
            transpose(row);
            for (int n = 0; n < PAIRS; n++) {
                store_floats(to + (i + n) * stride + k, lower(row[n]));
                store_floats(to + (i + PAIRS + n) * stride + k, upper(row[n]));
            }
        }
    for (int64_t k = 0; k < C; k++)
        for (int64_t i = k < whole_C ? whole_D : 0; i < D; i++) to[place_of(i, D) * stride + k] = wide(keys[k * D + i]);
}

static __attribute__((noinline)) void open_tile(Tile *tile, int64_t tokens, int64_t D) {
    int64_t C = tile->call->block_tokens;
    for (int64_t b = 0; b * C < tokens; b++) {
        int64_t some = tokens - b * C < C ? tokens - b * C : C;
        const bf16 *keys = keys_of(tile, b, D), *values = keys + tile->call->kv_heads * C * D;
        turn(tile->keys + b * C, tile->stride, keys, C, D);
        for (int64_t k = 0; k < some; k++) split(tile->values + (b * C + k) * D, values + k * D, D);
    }
}

/* scores[r][k] = q[r] . key k for so many rows and vectors of turned keys. */
static inline __attribute__((always_inline)) void score_vectors(const float *q, const Tile *tile, float *scores, int64_t low,
                                                                int64_t D, const int rows, const int vectors) {
    floats dot[ROWS][KEYS] = {0};
    for (int64_t i = 0; i < D; i++) {
        floats key[KEYS];
        for (int v = 0; v < vectors; v++) key[v] = load_floats(tile->keys + i * tile->stride + low + v * PAIRS);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) dot[r][v] += q[r * D + i] * key[v];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store_floats(scores + r * tile->stride + low + v * PAIRS, dot[r][v]);
}

/* The same for so many keys as they lie in the cache; fetches their values, each `values` numbers further. */
static inline __attribute__((always_inline)) void score_keys(const float *q, const bf16 *key, int64_t values, float *scores,
                                                             int64_t stride, int64_t D, const int rows, const int keys) {
    floats dot[ROWS][NEIGHBOURS] = {0};
    int64_t i = 0;
    for (; i + NUMBERS <= D; i += NUMBERS)
        for (int k = 0; k < keys; k++) {
            const bf16 *from = key + k * D + i;
            words w = load(from);
            if (i % LINE == 0) __builtin_prefetch(from + values);
            for (int r = 0; r < rows; r++) {
                const float *own = q + r * D + i;
                dot[r][k] += load_floats(own) * lower(w) + load_floats(own + PAIRS) * upper(w);
            }
        }
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < keys; k++) {
            float sum = total(dot[r][k]);
            for (int64_t j = i; j < D; j++) sum += q[r * D + j] * wide(key[k * D + j]);
            scores[r * stride + k] = sum;
        }
}

/* scores[r][k] = q[r] . key k, of so many rows; also of keys that share a vector with those. */
static inline __attribute__((always_inline)) void score(const float *q, const Tile *tile, float *scores, int64_t from,
                                                        int64_t to, int64_t D, const int rows) {
    if (!tile->opened) {
        int64_t C = tile->call->block_tokens, values = tile->call->kv_heads * C * D;
        while (from < to) {
            int64_t block = from / C, end = (block + 1) * C < to ? (block + 1) * C : to;
            const bf16 *key = keys_of(tile, block, D) + from % C * D;
            for (; from + NEIGHBOURS <= end; from += NEIGHBOURS, key += NEIGHBOURS * D)
                score_keys(q, key, values, scores + from, tile->stride, D, rows, NEIGHBOURS);
            for (; from < end; from++, key += D) score_keys(q, key, values, scores + from, tile->stride, D, rows, 1);
        }
        return;
    }
    int64_t low = from / PAIRS * PAIRS;
    for (; low + (KEYS - 1) * PAIRS < to; low += KEYS * PAIRS) score_vectors(q, tile, scores, low, D, rows, KEYS);
    for (; low < to; low += PAIRS) score_vectors(q, tile, scores, low, D, rows, 1);
}

/* sum[r] = shrink[r] * sum[r] + scores[r] . values [from, to) for so many rows and vectors of columns. */
static inline __attribute__((always_inline)) void mix(const float *scores, const Tile *tile, const float *shrink,
                                                      float *sum, int64_t sum_stride, int64_t low, int64_t from,
                                                      int64_t to, int64_t D, const int rows, const int vectors) {
    floats own[ROWS][VALUES];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) own[r][v] = shrink[r] * load_floats(sum + r * sum_stride + low + v * PAIRS);
    for (int64_t k = from; k < to; k++) {
        floats value[VALUES];
        for (int v = 0; v < vectors; v++) value[v] = load_floats(tile->values + k * D + low + v * PAIRS);
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) own[r][v] += scores[r * tile->stride + k] * value[v];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store_floats(sum + r * sum_stride + low + v * PAIRS, own[r][v]);
}

/* The same for columns that are so many pairs of vectors, of values as they lie in the cache; fetches the next tile's keys. */
static inline __attribute__((always_inline)) void mix_values(const float *scores, const Tile *tile, const float *shrink,
                                                             float *sum, int64_t sum_stride, int64_t low, int64_t from,
                                                             int64_t to, int64_t D, const int rows, const int pairs) {
    int64_t C = tile->call->block_tokens, size = tile->call->kv_heads * C * D;
    floats own[ROWS][2 * SPAN];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2 * pairs; v++) own[r][v] = shrink[r] * load_floats(sum + r * sum_stride + low + v * PAIRS);
    while (from < to) {
        int64_t block = from / C, end = (block + 1) * C < to ? (block + 1) * C : to, ahead = block + blocks_of_a_tile(C);
        const bf16 *values = keys_of(tile, block, D) + size, *next = keys_of(tile, ahead < tile->left ? ahead : block, D);
        for (int64_t i = from % C * D + low; from < end; from++, i += D)
            for (int v = 0; v < pairs; v++) {
                words w = load(values + i + v * NUMBERS);
                if (v * NUMBERS % LINE == 0) __builtin_prefetch(next + i + v * NUMBERS);
                for (int r = 0; r < rows; r++) {
                    own[r][2 * v] += scores[r * tile->stride + from] * lower(w);
                    own[r][2 * v + 1] += scores[r * tile->stride + from] * upper(w);
                }
            }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2 * pairs; v++) store_floats(sum + r * sum_stride + low + v * PAIRS, own[r][v]);
}

static inline float value_of(const Tile *tile, int64_t k, int64_t i, int64_t D) {
    int64_t C = tile->call->block_tokens;
    if (tile->opened) return tile->values[k * D + i];
    return wide(keys_of(tile, k / C, D)[(tile->call->kv_heads * C + k % C) * D + i]);
}

/* Numbers of a row's sum, in whole vectors where D is: its weighted values, the highest score, the sum of the weights. */
static inline int64_t sum_size(int64_t D) { return D + PAIRS; }

/* The highest of x[from] to x[to - 1] and `top`, which takes no notice of NaN. */
static inline float highest_of(const float *x, int64_t from, int64_t to, float top) {
    floats most = top + (floats){0};
    for (; from + PAIRS <= to; from += PAIRS) {
        floats next = load_floats(x + from);
        words higher = (words)(next > most);
        most = (floats)(((words)next & higher) | ((words)most & ~higher));
    }
    for (int i = 0; i < PAIRS; i++) top = most[i] > top ? most[i] : top;
    for (; from < to; from++) top = x[from] > top ? x[from] : top;
    return top;
}

/* Takes a tile into the sums of so many rows; row r sees its keys [from[r], to[r]). A sum holds the weighted values,
 * the highest score so far, and the sum of the weights, all relative to that score. */
static inline __attribute__((always_inline)) void absorb(const float *q, const Tile *tile, const int64_t *from,
                                                         const int64_t *to, float *scores, float *sum, int64_t D,
                                                         const int rows) {
    int64_t lowest = from[0], end = to[0], stride = sum_size(D), low = 0;
    float shrink[ROWS];
    for (int r = 1; r < rows; r++) lowest = from[r] < lowest ? from[r] : lowest, end = to[r] > end ? to[r] : end;
    score(q, tile, scores, lowest, end, D, rows);
    for (int r = 0; r < rows; r++) {
        float *own = scores + r * tile->stride, *highest = sum + r * stride + D, added = 0;
        float top = highest_of(own, from[r], to[r], *highest);
        shrink[r] = exp_negative(*highest - top); /* 1 where nothing has changed */
        for (int64_t k = from[r]; k < to[r]; k++) own[k] = exp_negative(own[k] - top);
        for (int64_t k = from[r]; k < to[r]; k++) added += own[k];
        for (int64_t k = lowest; k < from[r]; k++) own[k] = 0;
        for (int64_t k = to[r]; k < end; k++) own[k] = 0;
        highest[1] = highest[1] * shrink[r] + added;
        *highest = top;
    }
    if (tile->opened) {
        for (; low + VALUES * PAIRS <= D; low += VALUES * PAIRS)
            mix(scores, tile, shrink, sum, stride, low, lowest, end, D, rows, VALUES);
        for (; low + PAIRS <= D; low += PAIRS) mix(scores, tile, shrink, sum, stride, low, lowest, end, D, rows, 1);
    } else {
        for (; low + SPAN * NUMBERS <= D; low += SPAN * NUMBERS)
            mix_values(scores, tile, shrink, sum, stride, low, lowest, end, D, rows, SPAN);
        for (; low + NUMBERS <= D; low += NUMBERS)
            mix_values(scores, tile, shrink, sum, stride, low, lowest, end, D, rows, 1);
    }
    for (; low < D; low++)
        for (int r = 0; r < rows; r++) {
            float own = sum[r * stride + low] * shrink[r];
            for (int64_t k = lowest; k < end; k++) own += scores[r * tile->stride + k] * value_of(tile, k, low, D);
            sum[r * stride + low] = own;
        }
}

/* Functions of their own, one for each common D and one for any: as part of what calls them they take compilers half a
 * minute. */
#define OF_EACH_WIDTH(DEFINE, name) DEFINE(name##_64, 64) DEFINE(name##_128, 128) DEFINE(name##_any, D)
#define OF_WIDTH(name) (D == 64 ? name##_64 : D == 128 ? name##_128 : name##_any)

/* `absorb` for any number of rows, one behind the other. */
#define ABSORB_ROWS(name, width) \
    static __attribute__((noinline)) void name(const float *q, const Tile *tile, const int64_t *from, const int64_t *to, \
                                               float *scores, float *sum, int64_t D, int64_t rows) { \
        (void)D; \
        for (; rows > 0; rows -= ROWS, from += ROWS, to += ROWS, q += ROWS * (width), sum += ROWS * sum_size(width)) \
            if (rows >= ROWS) absorb(q, tile, from, to, scores, sum, width, ROWS); \
            else if (rows == 3) absorb(q, tile, from, to, scores, sum, width, 3); \
            else if (rows == 2) absorb(q, tile, from, to, scores, sum, width, 2); \
            else absorb(q, tile, from, to, scores, sum, width, 1); \
    }
OF_EACH_WIDTH(ABSORB_ROWS, absorb_rows)
#undef ABSORB_ROWS

/* So many fp32 numbers and as many more as fill the last vector: what lies behind them begins a line of the cache. Vectors
 * across two lines cost a tenth of a decode step's attention. */
static inline int64_t whole_vectors(int64_t numbers) { return (numbers + PAIRS - 1) / PAIRS * PAIRS; }

static inline int64_t tile_stride(int64_t block_tokens) {
    return whole_vectors(blocks_of_a_tile(block_tokens) * block_tokens);
}

/* How many fp32 numbers `attend_head` needs for so many rows: of each two limits of 64 bits, its query and its sum; a tile's
 * keys and values; scores of some rows. */
int64_t attend_scratch(int64_t rows, int64_t D, int64_t block_tokens) {
    int64_t stride = tile_stride(block_tokens), tokens = blocks_of_a_tile(block_tokens) * block_tokens;
    return whole_vectors(4 * rows) + whole_vectors(rows * (D + sum_size(D)) + (stride + tokens) * D + ROWS * stride);
}

/* Of all rows: the query, widened and scaled, and an empty sum. */
static inline __attribute__((always_inline)) void open_rows(const Attention *call, int64_t low, int64_t high, int64_t head,
                                                            float *q, float *sum, int64_t D) {
    int64_t group = call->heads / call->kv_heads;
    for (int64_t s = low; s < high; s++)
        for (int64_t r = 0; r < call->count[s] * group; r++, q += D, sum += sum_size(D)) {
            const bf16 *x = call->query + (call->first[s] + r / group) * call->query_stride + (head * group + r % group) * D;
            split(q, x, D);
            for (int64_t i = 0; i < D; i++) q[i] *= call->scale, sum[i] = 0;
            sum[D] = -INFINITY;
            sum[D + 1] = 0;
        }
}

/* The weighted means of one segment's rows into its output. */
static inline __attribute__((always_inline)) void close_rows(const Attention *call, int64_t s, int64_t head,
                                                             const float *sum, int64_t D) {
    int64_t group = call->heads / call->kv_heads;
    for (int64_t r = 0; r < call->count[s] * group; r++, sum += sum_size(D)) {
        bf16 *o = call->out + ((call->first[s] + r / group) * call->heads + head * group + r % group) * D;
        int64_t i = 0;
        for (; i + NUMBERS <= D; i += NUMBERS) {
            floats low = load_floats(sum + i) / sum[D + 1], high = load_floats(sum + i + PAIRS) / sum[D + 1];
            words w = rounded(high) | rounded(low) >> 16;
            memcpy(o + i, &w, sizeof w);
        }
        for (; i < D; i++) o[i] = narrow(sum[i] / sum[D + 1]);
    }
}

/* Queries of the segments [low, high), whose first `shared` tokens are the same ones and lie behind none of them, of the
 * heads that share one head of keys and values. */
static inline __attribute__((always_inline)) void attend_head(const Attention *call, int64_t low, int64_t high,
                                                              int64_t shared, int64_t head, float *scratch, int64_t D) {
    int64_t group = call->heads / call->kv_heads, C = call->block_tokens, window = call->window, rows = 0;
    int64_t some = blocks_of_a_tile(C), stride = tile_stride(C), lent = shared % C, whole;
    for (int64_t s = low; s < high; s++) rows += call->count[s] * group;
    int64_t *from = (int64_t *)scratch, *to = from + rows;
    float *keys = scratch + whole_vectors(4 * rows);
    Tile tile = {keys, keys + stride * D, stride, 0, call, NULL, 0, head};
    float *scores = tile.values + some * C * D, *queries = scores + ROWS * stride, *sums = queries + rows * D, *q = queries;
    if (stride > some * C) memset(keys, 0, (size_t)(stride * D) * sizeof *keys); /* vectors reach behind the last key */
    open_rows(call, low, high, head, queries, sums, D);
    if (window) shared = 0; /* where they begin to look differs */
    whole = shared / C;
    tile.opened = rows > FEW;
    for (int64_t b = 0; b * C < shared; b += some) {
        int64_t tokens = shared - b * C < some * C ? shared - b * C : some * C;
        for (int64_t r = 0; r < rows; r++) from[r] = 0, to[r] = tokens;
        tile.table = call->table + call->table_start[low] + b;
        tile.left = whole + (lent > 0) - b;
        if (tile.opened) open_tile(&tile, tokens, D);
        OF_WIDTH(absorb_rows)(queries, &tile, from, to, scores, sums, D, rows);
    }
    for (int64_t s = low; s < high; s++) {
        int64_t position = call->position[s], count = call->count[s], own = count * group;
        int64_t oldest = window && position >= window ? position - window + 1 : 0, last = (position + count - 1) / C;
        tile.opened = own > FEW;
        for (int64_t b = oldest / C > whole ? oldest / C : whole; b <= last; b += some) {
            int64_t blocks = last - b + 1 < some ? last - b + 1 : some, begin = own, end = 0, seen = 0;
            for (int64_t r = 0; r < own; r++) {
                int64_t at = position + r / group - b * C; /* within the tile */
                to[r] = at < blocks * C ? at + 1 : blocks * C;
                from[r] = window && at - window + 1 > 0 ? at - window + 1 : b == whole ? lent : 0;
                seen = to[r] > seen ? to[r] : seen;
                if (from[r] < to[r]) begin = r < begin ? r : begin, end = r + 1; /* they follow on each other */
            }
            tile.table = call->table + call->table_start[s] + b + (lent > 0);
            tile.left = last - b + 1;
            if (tile.opened) open_tile(&tile, seen, D);
            if (begin < end)
                OF_WIDTH(absorb_rows)
                (q + begin * D, &tile, from + begin, to + begin, scores, sums + begin * sum_size(D), D, end - begin);
        }
        close_rows(call, s, head, sums, D);
        q += own * D;
        sums += own * sum_size(D);
    }
}

#define ATTEND_HEAD(name, width) \
    static __attribute__((noinline)) void name(const Attention *call, int64_t low, int64_t high, int64_t shared, int64_t head, \
                                               float *scratch, int64_t D) { \
        (void)D; \
        attend_head(call, low, high, shared, head, scratch, width); \
    }
OF_EACH_WIDTH(ATTEND_HEAD, attend_head)
#undef ATTEND_HEAD

/* Attention of the segments to their own sequences' keys and values, where they lie in the cache.
 *
 * Segment s: query tokens [first[s], first[s] + count[s]), the first at position[s]; its blocks are
 * table[table_start[s]], ... A block holds kv_heads times [block_tokens, D] of keys, then as many of values.
 * Family f: segments [family[2 f], family[2 f + 2]), whose first family[2 f + 1] tokens are the same: they are read once for
 * all of them. If those end within a block, that block is another sequence's, and each segment's own one, with the tokens
 * behind, is the next in its table; only without a window.
 * query: token t's head h at t * query_stride + h * D; out [tokens, heads, D]. window 0: all that went before.
 * scratch: scratch_size numbers for each thread, as `attend_scratch` says for the most rows of a family; so few that they
 * stay in its cache. */
void attend(const bf16 *query, int64_t query_stride, const bf16 *cache, bf16 *out, const int64_t *first,
            const int64_t *count, const int64_t *position, const int64_t *table_start, const int64_t *table,
            const int64_t *family, int64_t families, int64_t heads, int64_t kv_heads, int64_t D, int64_t block_tokens,
            float scale, int64_t window, float *scratch, int64_t scratch_size, int64_t threads) {
    Attention call = {query,        cache, out,      first,        count,  position, table_start, table,
                      query_stride, heads, kv_heads, block_tokens, window, scale};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < families * kv_heads; item++) {
        const int64_t *f = family + 2 * (item / kv_heads);
        float *own = scratch + omp_get_thread_num() * scratch_size;
        OF_WIDTH(attend_head)(&call, f[0], f[2], f[1], item % kv_heads, own, D);
    }
}

/* Tokens [start, start + count) through `slots` slots: slot[s], whose terms count weight[s] times.
 * h has room for count * slots * terms numbers. */
typedef struct {
    int64_t start, count, slots;
    const int64_t *slot;
    const float *weight;
    float *h;
} Run;

/* h[t][r] = weight * x[t] . a[r] for so many tokens and rows of width I; inlined for each pair of numbers. */
static inline __attribute__((always_inline)) void project_block(const bf16 *x, const bf16 *a, int64_t I, float weight,
                                                                float *h, int64_t h_stride, const int tokens,
                                                                const int rows) {
    floats sum[TOKENS][ROWS] = {0}, low[TOKENS], high[TOKENS];
    int64_t i = 0;
    for (; i + NUMBERS <= I; i += NUMBERS) {
        for (int t = 0; t < tokens; t++) low[t] = lower(load(x + t * I + i)), high[t] = upper(load(x + t * I + i));
        for (int r = 0; r < rows; r++) {
            words w = load(a + r * I + i);
            __builtin_prefetch(a + (r + rows) * I + i);
            for (int t = 0; t < tokens; t++) sum[t][r] += low[t] * lower(w) + high[t] * upper(w);
        }
    }
    for (int t = 0; t < tokens; t++)
        for (int r = 0; r < rows; r++) {
            float dot = total(sum[t][r]);
            for (int64_t j = i; j < I; j++) dot += wide(x[t * I + j]) * wide(a[r * I + j]);
            h[t * h_stride + r] = weight * dot;
        }
}

/* h = x A^T for the run's rows [low, high) of A, of which there are slots * terms. */
static __attribute__((noinline)) void project(const Run *run, const bf16 *x, const bf16 *a, int64_t I, int64_t terms, int64_t low,
                           int64_t high) {
    int64_t stride = run->slots * terms;
    for (int64_t t = 0; t < run->count;) {
        int64_t left = run->count - t, step = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const bf16 *in = x + (run->start + t) * I;
        for (int64_t row = low; row < high;) {
            int64_t s = row / terms, end = (s + 1) * terms < high ? (s + 1) * terms : high;
            const bf16 *r = a + (run->slot[s] * terms + row % terms) * I;
            float *h = run->h + t * stride + row, weight = run->weight[s];
            if (row + ROWS > end) {
                for (int64_t k = 0; k < step; k++) project_block(in + k * I, r, I, weight, h + k * stride, stride, 1, 1);
                row++;
                continue;
            }
            if (step == 4) project_block(in, r, I, weight, h, stride, 4, ROWS);
            else if (step == 2) project_block(in, r, I, weight, h, stride, 2, ROWS);
            else project_block(in, r, I, weight, h, stride, 1, ROWS);
            row += ROWS;
        }
        t += step;
    }
}

enum { CHUNK = 256 }; /* columns that a thread takes at a time where there are few runs */

/* y[t] += h[t] B for so many tokens and `span` vectors of columns; row z of a slot of B at (slot * rank + z) * width. */
static inline __attribute__((always_inline)) void expand_block(const float *h, int64_t h_stride, bf16 *y,
                                                               int64_t y_stride, const bf16 *b, int64_t width,
                                                               const int64_t *slot, int64_t slots, int64_t terms,
                                                               int64_t rank, const int tokens, const int span) {
    floats low[TOKENS][SPAN] = {0}, high[TOKENS][SPAN] = {0};
    for (int64_t s = 0; s < slots; s++)
        for (int64_t z = 0; z < rank; z++)
            for (int n = 0; n < span; n++) {
                words w = load(b + (slot[s] * rank + z) * width + n * NUMBERS);
                __builtin_prefetch(b + (slot[s] * rank + z) * width + (n + span) * NUMBERS);
                for (int t = 0; t < tokens; t++) {
                    float factor = h[t * h_stride + s * terms + z];
                    low[t][n] += factor * lower(w);
                    high[t][n] += factor * upper(w);
                }
            }
    for (int t = 0; t < tokens; t++)
        for (int n = 0; n < span; n++) {
            bf16 *out = y + t * y_stride + n * NUMBERS;
            words w = load(out);
            w = rounded(upper(w) + high[t][n]) | rounded(lower(w) + low[t][n]) >> 16;
            memcpy(out, &w, sizeof w);
        }
}

/* y += h B for columns [low, high) of one part, which begins at column `edge` and is `width` wide; b [slots, rank, width]. */
static __attribute__((noinline)) void expand(const Run *run, bf16 *y, int64_t y_stride, const bf16 *b, int64_t edge, int64_t width,
                          int64_t part, int64_t terms, int64_t rank, int64_t low, int64_t high) {
    int64_t stride = run->slots * terms, slots = run->slots;
    for (int64_t t = 0; t < run->count;) {
        int64_t left = run->count - t, step = left >= 4 ? 4 : left >= 2 ? 2 : 1, from = low;
        const float *h = run->h + t * stride + part * rank;
        const bf16 *rows = b - edge;
        bf16 *out = y + (run->start + t) * y_stride;
#define EXPAND(tokens, span) \
    expand_block(h, stride, out + from, y_stride, rows + from, width, run->slot, slots, terms, rank, tokens, span)
        for (; from + SPAN * NUMBERS <= high; from += SPAN * NUMBERS)
            if (step == 4) EXPAND(4, SPAN);
            else if (step == 2) EXPAND(2, SPAN);
            else EXPAND(1, SPAN);
#undef EXPAND
        for (; from < high; from++)
            for (int64_t k = 0; k < step; k++) {
                float sum = wide(out[k * y_stride + from]);
                for (int64_t s = 0; s < slots; s++)
                    for (int64_t z = 0; z < rank; z++)
                        sum += h[k * stride + s * terms + z] * wide(rows[(run->slot[s] * rank + z) * width + from]);
                out[k * y_stride + from] = narrow(sum);
            }
        t += step;
    }
}

/* `expand` for columns [low, high) of all parts side by side. */
static inline void expand_parts(const Run *run, bf16 *y, int64_t y_stride, const bf16 *const *b, const int64_t *edge,
                                int64_t parts, int64_t rank, int64_t low, int64_t high) {
    for (int64_t p = 0; p < parts; p++) {
        int64_t from = edge[p] > low ? edge[p] : low, to = edge[p + 1] < high ? edge[p + 1] : high;
        if (from < to)
            expand(run, y, y_stride, b[p], edge[p], edge[p + 1] - edge[p], p, parts * rank, rank, from, to);
    }
}

/* y += x A^T B for runs of tokens that each have their own slots.
 *
 * Run r: tokens [table[4 r], table[4 r + 1]) through slots slot[table[4 r + 2]] to slot[table[4 r + 3] - 1], whose terms
 * are multiplied by the numbers at the same places of weight. a [slots, parts, rank, I];
 * part p of a token's output, its columns [edge[p], edge[p + 1]), adds what b[p] [slots, rank, width of p] makes of it.
 * h: room for parts * rank numbers for each pair of a token and one of its slots.
 * Many runs are dealt out to the threads whole, a few are cut into rows and columns. */
void add_terms(bf16 *y, int64_t y_stride, const bf16 *x, int64_t I, const bf16 *a, const bf16 *const *b,
               const int64_t *edge, const int64_t *table, const int64_t *slot, const float *weight, int64_t runs,
               int64_t parts, int64_t rank, float *h) {
    int64_t terms = parts * rank, columns = edge[parts], before = 0;
    Run run[runs];
    for (int64_t r = 0; r < runs; r++) {
        const int64_t *row = table + 4 * r;
        run[r] = (Run){row[0], row[1] - row[0], row[3] - row[2], slot + row[2], weight + row[2], h + before * terms};
        before += run[r].count * run[r].slots;
    }
    if (runs >= 4) {
#pragma omp parallel for schedule(dynamic)
        for (int64_t r = 0; r < runs; r++) {
            project(&run[r], x, a, I, terms, 0, run[r].slots * terms);
            expand_parts(&run[r], y, y_stride, b, edge, parts, rank, 0, columns);
        }
        return;
    }
#pragma omp parallel
    {
        for (int64_t r = 0; r < runs; r++) {
#pragma omp for schedule(static) nowait
            for (int64_t row = 0; row < run[r].slots * terms; row += 4) {
                int64_t end = row + 4 < run[r].slots * terms ? row + 4 : run[r].slots * terms;
                project(&run[r], x, a, I, terms, row, end);
            }
        }
#pragma omp barrier
        for (int64_t r = 0; r < runs; r++) {
#pragma omp for schedule(static) nowait
            for (int64_t low = 0; low < columns; low += CHUNK)
                expand_parts(&run[r], y, y_stride, b, edge, parts, rank, low, low + CHUNK < columns ? low + CHUNK : columns);
        }
    }
}

/* n of an expert's numbers, bf16 or fp32, times a factor. */
static inline void put(bf16 *to, const char *from, int64_t n, int64_t in_fp32, float factor) {
    if (!in_fp32 && factor == 1)
        memcpy(to, from, (size_t)n * sizeof *to);
    else if (!in_fp32)
        for (int64_t i = 0; i < n; i++) {
            bf16 x;
            memcpy(&x, from + i * (int64_t)sizeof x, sizeof x);
            to[i] = narrow(wide(x) * factor);
        }
    else
        for (int64_t i = 0; i < n; i++) {
            float x;
            memcpy(&x, from + i * (int64_t)sizeof x, sizeof x);
            to[i] = narrow(x * factor);
        }
}

/* Where one linear's slots lie, and an expert's terms for it: `a` and `b` are those of slot 0, of K terms each; the next
 * slot's A is a_stride numbers further, its B follows. The expert's A [rank, I] and B [rank, O] lie at offsets in bytes. */
typedef struct {
    bf16 *a;
    int64_t a_stride;
    bf16 *b;
    int64_t K, I, O, a_offset, b_offset, rank;
} Linear;

/* An expert's terms in slots [first, first + slots) of some linears, its B multiplied by each one's factor; zeros behind
 * the last term. */
void fill_slots(const Linear *linear, const float *factor, int64_t num, const char *expert, int64_t in_fp32, int64_t first,
                int64_t slots) {
    int64_t size = in_fp32 ? sizeof(float) : sizeof(bf16);
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t i = 0; i < 2 * num; i++) {
        const Linear *l = linear + i / 2;
        int64_t room = slots * l->K;
        if (i % 2) {
            bf16 *b = l->b + first * l->K * l->O;
            put(b, expert + l->b_offset, l->rank * l->O, in_fp32, factor[i / 2]);
            memset(b + l->rank * l->O, 0, (size_t)((room - l->rank) * l->O) * sizeof *b);
            continue;
        }
        for (int64_t s = 0; s < slots; s++) {
            bf16 *a = l->a + (first + s) * l->a_stride;
            int64_t left = l->rank - s * l->K, kept = left < 0 ? 0 : left < l->K ? left : l->K;
            put(a, expert + l->a_offset + s * l->K * l->I * size, kept * l->I, in_fp32, 1);
            memset(a + kept * l->I, 0, (size_t)((l->K - kept) * l->I) * sizeof *a);
        }
    }
}

/* A product and the experts' terms beside it, as `multiply` and `add_terms` take them. */
typedef struct {
    const char *weight;
    const float *scale;
    const bf16 *bias;
    int64_t I, O;
    const bf16 *a, *const *b;
    const int64_t *edge;
    int64_t parts, rank;
} Site;

typedef struct {
    const bf16 *input_norm, *mlp_norm;
    int64_t window;
    Site qkv, out, gate_up, down;
} Layer;

/* What the layers of one step share, each part as the function that it is for takes it, and room for what lies between
 * them. `cache` and `weight` have a pointer for each layer, `used` whether a layer's sites have terms of the step's
 * experts. */
typedef struct {
    int64_t tokens, width, heads, kv_heads, D, block_tokens;
    bf16 *hidden, *delta, *normed, *qkv, *attended, *gate_up, *active;
    float *room;
    const float *cos, *sin;
    const int64_t *place;
    bf16 *const *cache;
    const int64_t *copies;
    int64_t num_copies;
    const int64_t *first, *count, *position, *table_start, *table, *family;
    int64_t families;
    float *scratch;
    int64_t scratch_size, threads;
    const int64_t *runs, *slots;
    int64_t num_runs;
    const float *const *weight;
    const uint8_t (*used)[4];
    float *h;
    float scale, epsilon;
} Step;

static void apply(const Site *site, const bf16 *x, bf16 *y, const Step *step, int64_t layer, int index) {
    multiply(x, site->weight, site->scale, site->bias, y, step->tokens, site->I, site->O, step->room);
    if (step->num_runs && step->used[layer][index])
        add_terms(y, site->O, x, site->I, site->a, site->b, site->edge, step->runs, step->slots, step->weight[layer],
                  step->num_runs, site->parts, site->rank, step->h);
}

/* All layers, one after the other; the sum of `hidden` and `delta` is what comes out. */
void run_layers(const Layer *layers, int64_t num, const Step *step) {
    int64_t T = step->tokens, heads = step->heads, kv_heads = step->kv_heads, D = step->D, C = step->block_tokens;
    for (int64_t l = 0; l < num; l++) {
        const Layer *layer = layers + l;
        add_norm(step->hidden, l ? step->delta : NULL, layer->input_norm, step->normed, T, step->width, step->epsilon);
        apply(&layer->qkv, step->normed, step->qkv, step, l, 0);
        rotate_and_store(step->qkv, step->cos, step->sin, step->cache[l], step->place, T, heads + 2 * kv_heads,
                         heads + kv_heads, kv_heads, D, C);
        if (step->num_copies) copy_tokens(step->cache[l], step->copies, step->num_copies, 2 * kv_heads, C, D);
        attend(step->qkv, (heads + 2 * kv_heads) * D, step->cache[l], step->attended, step->first, step->count,
               step->position, step->table_start, step->table, step->family, step->families, heads, kv_heads, D, C,
               step->scale, layer->window, step->scratch, step->scratch_size, step->threads);
        apply(&layer->out, step->attended, step->delta, step, l, 1);
        add_norm(step->hidden, step->delta, layer->mlp_norm, step->normed, T, step->width, step->epsilon);
        apply(&layer->gate_up, step->normed, step->gate_up, step, l, 2);
        swiglu(step->gate_up, step->active, T, layer->gate_up.O / 2);
        apply(&layer->down, step->active, step->delta, step, l, 3);
    }
}

/* The passes over logits that selection on a CPU is made of, one row at a time: see native.py.

   Built for the machine that it runs on, by whatever C compiler is there. Vectors are those of GCC and clang, which turn
   them into the widest instructions that they may use. A row has `v` ids and begins `stride` floats after the last one. */

#include <stdlib.h>
#include <string.h>

#define BLOCK 64 /* ids with one maximum and one sum, as in largest.py and blocks.py */
#define LANES 16
#define PARTS (BLOCK / LANES)
#define NOTHING -1.7e38f /* a logit without mass, of which 0 times it is 0 */

typedef float vf __attribute__((vector_size(64)));
typedef int vi __attribute__((vector_size(64)));
typedef float v8 __attribute__((vector_size(32)));
typedef double d8 __attribute__((vector_size(64)));

static inline vf load(const float *from) {
  vf x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline vf either(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

static inline vf larger(vf a, vf b) { return either(a > b, a, b); }

static inline float across(vf x) { /* the largest of all lanes */
  x = larger(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
  x = larger(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7));
  x = larger(x, __builtin_shufflevector(x, x, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3));
  return x[0] > x[1] ? x[0] : x[1];
}

static inline d8 doubled(vf x) { /* lanes, two and two */
  v8 low = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
  v8 high = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_convertvector(low, d8) + __builtin_convertvector(high, d8);
}

static inline double added(d8 x) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }

/* e^x for x <= 0, and 0 below the smallest normal number: Cephes' expf (S. L. Moshier), within 1e-7. */
static inline vf exponential(vf x) {
  vf turns = x * 1.44269504088896341f + 12582912.0f; /* rounded to whole numbers by adding 1.5 * 2^23 */
  vi n = (vi)turns - 0x4B400000;
  turns -= 12582912.0f;
  vf r = x - turns * 0.693359375f + turns * 2.12194440e-4f;
  vf y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  y = (vf)((vi)y + (n << 23));
  return (vf)((vi)y & (x > -87.0f));
}

/* The sum, which is not finite or very low if any logit is, and maxima of whole blocks. */
static float first_pass(const float *z, long v, float *maxima) {
  long blocks = v / BLOCK;
  vf sum = {0};
  for (long b = 0; b < blocks; b++) {
    const float *at = z + b * BLOCK;
    vf x0 = load(at), x1 = load(at + LANES), x2 = load(at + 2 * LANES), x3 = load(at + 3 * LANES);
    sum += (x0 + x1) + (x2 + x3);
    maxima[b] = across(larger(larger(x0, x1), larger(x2, x3)));
  }
  float total = 0;
  for (int l = 0; l < LANES; l++) total += sum[l];
  for (long j = blocks * BLOCK; j < v; j++) total += z[j];
  return total;
}

/* The k-th largest of n numbers, which are reordered (Hoare's selection). */
static float nth(float *x, long n, long k) {
  long low = 0, high = n - 1, want = k - 1;
  while (low < high) {
    float pivot = x[low + (high - low) / 2];
    long i = low, j = high;
    while (i <= j) {
      while (x[i] > pivot) i++;
      while (x[j] < pivot) j--;
      if (i <= j) {
        float swapped = x[i];
        x[i++] = x[j];
        x[j--] = swapped;
      }
    }
    if (want <= j) high = j;
    else if (want >= i) low = i;
    else break;
  }
  return x[want];
}

typedef struct {
  float value;
  long id;
} candidate;

static int descending(const void *a, const void *b) {
  const candidate *x = a, *y = b;
  if (x->value != y->value) return x->value < y->value ? 1 : -1;
  return (x->id > y->id) - (x->id < y->id);
}

/* The k largest in descending order, of equal ones the lowest ids; at least k blocks are needed. Of their maxima the
   k-th largest is a bound: all above it are candidates, and of those equal to it as many as there is room for. `scratch`
   holds as many numbers as there are blocks, `found` (k + 1) blocks: of fewer than k, and of the last ids. Returns 0 if
   there are not k, because some logits are NaN: then ids are -1. */
static int largest(const float *z, long v, const float *maxima, long k, float *scratch, candidate *found, float *values,
                   long *ids) {
  long blocks = v / BLOCK, count = 0;
  memcpy(scratch, maxima, blocks * sizeof *scratch);
  float bound = nth(scratch, blocks, k);
  for (long b = 0; b <= blocks; b++) {
    if (b < blocks && !(maxima[b] > bound)) continue;
    long end = b < blocks ? (b + 1) * BLOCK : v;
    for (long j = b * BLOCK; j < end; j++)
      if (z[j] > bound) found[count++] = (candidate){z[j], j};
  }
  for (long b = 0; b <= blocks && count < k; b++) {
    if (b < blocks && maxima[b] < bound) continue;
    long end = b < blocks ? (b + 1) * BLOCK : v;
    for (long j = b * BLOCK; j < end && count < k; j++)
      if (z[j] == bound) found[count++] = (candidate){z[j], j};
  }
  while (count < k) found[count++] = (candidate){-__builtin_inff(), -1};
  qsort(found, count, sizeof *found, descending);
  for (long j = 0; j < k; j++) {
    values[j] = found[j].value;
    ids[j] = found[j].id;
  }
  return ids[k - 1] >= 0;
}

typedef struct {
  d8 mass[3], spread;
} sums;

/* Of one block: with y = z - beyond, e^(y / T) at the first temperature, and squared `levels` times for those of a half
   and a quarter of it. `one`: at which of them T is 1, where e^y y is summed, too; -1: at none. */
static inline __attribute__((always_inline)) void block_of(const float *z, float beyond, float scale, int levels, int one,
                                                           sums *s) {
  vf mass[3] = {{0}, {0}, {0}}, spread = {0};
  for (int p = 0; p < PARTS; p++) {
    vf y = load(z + p * LANES) - beyond;
    vf e = exponential(y * scale);
    for (int level = 0; level <= levels; level++) {
      if (level) e *= e;
      mass[level] += e;
      if (level == one) spread += e * y;
    }
  }
  for (int level = 0; level <= levels; level++) s->mass[level] += doubled(mass[level]);
  if (one >= 0) s->spread += doubled(spread);
}

static inline __attribute__((always_inline)) void row_of(const float *z, long v, float beyond, float scale, int levels,
                                                         int one, sums *s) {
  float last[BLOCK];
  long j = 0;
  for (; j + BLOCK <= v; j += BLOCK) block_of(z + j, beyond, scale, levels, one, s);
  if (j == v) return;
  for (int l = 0; l < BLOCK; l++) last[l] = j + l < v ? z[j + l] : NOTHING;
  block_of(last, beyond, scale, levels, one, s);
}

/* Sums of e^(y / T) at T = 1 / scale and at a half and a quarter of it, and of e^y y: `found [4]`. */
static void tail(const float *z, long v, float beyond, float scale, int levels, int one, double *found) {
  sums s = {{{0}, {0}, {0}}, {0}};
  switch (levels * 4 + one + 1) { /* each compiled with its own numbers */
    case 0: row_of(z, v, beyond, scale, 0, -1, &s); break;
    case 1: row_of(z, v, beyond, scale, 0, 0, &s); break;
    case 4: row_of(z, v, beyond, scale, 1, -1, &s); break;
    case 5: row_of(z, v, beyond, scale, 1, 0, &s); break;
    case 6: row_of(z, v, beyond, scale, 1, 1, &s); break;
    case 9: row_of(z, v, beyond, scale, 2, 0, &s); break;
    case 10: row_of(z, v, beyond, scale, 2, 1, &s); break;
    case 11: row_of(z, v, beyond, scale, 2, 2, &s); break;
    default: row_of(z, v, beyond, scale, 2, -1, &s);
  }
  for (int level = 0; level < 3; level++) found[level] = added(s.mass[level]);
  found[3] = added(s.spread);
}

/* All that is told of n rows: totals; the k largest and their ids, `[n, k]`; and beyond the first k - 1 of these, for each
   chain of temperatures, what `tail` finds, `[n, chains, 4]`, with y relative to the last. Logits are left as they are.
   Of a row with a NaN the total alone means anything. Returns 1 where memory is short. */
int scan(float *z, long n, long stride, long v, long k, int chains, const float *scales, const int *levels,
         const int *ones, float *totals, float *values, long *ids, double *tails) {
  float *scratch = malloc(2 * (v / BLOCK) * sizeof *scratch);
  candidate *found = malloc((k + 1) * BLOCK * sizeof *found);
  int failed = !scratch || !found;
  for (long i = 0; i < n && !failed; i++, z += stride, values += k, ids += k, tails += 4 * chains) {
    float *maxima = scratch + v / BLOCK;
    totals[i] = first_pass(z, v, maxima);
    if (largest(z, v, maxima, k, scratch, found, values, ids) && chains) {
      for (long j = 0; j < k - 1; j++) z[ids[j]] = NOTHING;
      for (int c = 0; c < chains; c++) tail(z, v, values[k - 1], scales[c], levels[c], ones[c], tails + 4 * c);
      for (long j = 0; j < k - 1; j++) z[ids[j]] = values[j];
    }
  }
  free(scratch);
  free(found);
  return failed;
}

/* Logits become e^y, y = z - largest; the sum of e^y y, and the sums of blocks. v is a whole number of blocks. */
void exponentiate(float *z, long n, long stride, long v, const float *largest, double *spreads, double *blocks) {
  for (long i = 0; i < n; i++, z += stride) {
    d8 spread = {0};
    for (long j = 0; j < v; j += BLOCK) {
      vf mass = {0}, product = {0};
      for (int p = 0; p < PARTS; p++) {
        vf y = load(z + j + p * LANES) - largest[i], e = exponential(y);
        memcpy(z + j + p * LANES, &e, sizeof e);
        mass += e;
        product += e * y;
      }
      spread += doubled(product);
      *blocks++ = added(doubled(mass));
    }
    spreads[i] = added(spread);
  }
}

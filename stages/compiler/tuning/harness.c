/* Times candidate kernels of one layer against each other, in interleaved rounds on one pinned core.

   harness DATA CPU ROUNDS SECONDS FLUSH CANDIDATE...   (numbers of candidates, the first is the one whose results count as right)

   Writes a line per candidate: "number error microseconds microseconds ...". The generated table.h names the kernels and says where their arrays lie in DATA; the activations lie in memory of
   our own. Before each call FLUSH bytes are read, so that weights come from as far away as in a whole network, and the inputs are written, as the layer before would have done just now. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { NONE, DATA, WRITTEN, RESULT, SCRATCH };
enum { OPERANDS = 10, LINE = 64, PAGE = 4096, MOST_ROUNDS = 1000 };
typedef void (*kernel)(const void *, const void *, const void *, const void *, const void *, const void *, const void *, const void *, void *, void *, int32_t, int32_t);
typedef struct { int space; size_t place; } operand; /* DATA: byte offset; WRITTEN: number of the activation */
typedef struct { kernel run; int32_t units; operand operands[OPERANDS]; } candidate;
typedef struct { size_t place, bytes; } activation; /* its contents in DATA */

#include "table.h" /* candidates, activations, RESULT_BYTES, SCRATCH_BYTES, PITCH, CHANNELS */

static char *written[4], *result, *expected, *scratch, *far_away;
static const char *data;
static size_t flush_bytes;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void *room(size_t bytes) {
  void *p = NULL;
  if (posix_memalign(&p, PAGE, bytes + PAGE)) fail("memory");
  memset(p, 0, bytes + PAGE);
  return p;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

static void *address(operand o) {
  switch (o.space) {
    case DATA: return (void *)(data + o.place);
    case WRITTEN: return written[o.place];
    case RESULT: return result;
    case SCRATCH: return scratch;
    default: return NULL;
  }
}

static void call(const candidate *c) {
  void *a[OPERANDS];
  for (int i = 0; i < OPERANDS; i++) a[i] = address(c->operands[i]);
  c->run(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], 0, c->units);
}

static void prepare(void) {
  volatile char sink;
  for (size_t i = 0; i < flush_bytes; i += LINE) sink = far_away[i];
  (void)sink;
  for (int k = (int)(sizeof activations / sizeof *activations) - 1; k >= 0; k--) /* x, the first, is the most recent */
    for (size_t i = 0; i < activations[k].bytes; i += LINE) *(volatile char *)(written[k] + i) = written[k][i];
}

/* The largest difference to the expected results, relative to the largest of these; infinite where something wasn't written. */
static double error(void) {
  const float *y = (const float *)result, *e = (const float *)expected;
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < RESULT_BYTES / 4; i++) {
    if (i % PITCH >= CHANNELS) continue;
    if (isnan(e[i]) && isnan(y[i])) continue;
    double difference = fabs((double)y[i] - e[i]);
    if (!(difference <= worst)) worst = isnan(difference) ? INFINITY : difference;
    if (fabs(e[i]) > largest) largest = fabs(e[i]);
  }
  return worst / largest;
}

int main(int count, char **words) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (count < 7) return 2;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(atoi(words[2]), &cpus);
  if (sched_setaffinity(0, sizeof cpus, &cpus)) fail("affinity");
  int rounds = atoi(words[3]), chosen = count - 6, file = open(words[1], O_RDONLY);
  double seconds = atof(words[4]);
  flush_bytes = strtoull(words[5], NULL, 10);
  struct stat about;
  if (file < 0 || fstat(file, &about)) fail(words[1]);
  data = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
  if (data == MAP_FAILED) fail(words[1]);
  for (size_t k = 0; k < sizeof activations / sizeof *activations; k++) {
    written[k] = room(activations[k].bytes);
    memcpy(written[k], data + activations[k].place, activations[k].bytes);
  }
  result = room(RESULT_BYTES), expected = room(RESULT_BYTES), scratch = room(SCRATCH_BYTES), far_away = room(flush_bytes);
  if (rounds > MOST_ROUNDS) rounds = MOST_ROUNDS;
  double *samples = calloc((size_t)chosen * MOST_ROUNDS, sizeof *samples), *errors = calloc(chosen, sizeof *errors);
  if (!samples || !errors) fail("memory");
  for (int i = 0; i < chosen; i++) {
    memset(result, 0xff, RESULT_BYTES); /* not a number */
    call(&candidates[atoi(words[6 + i])]);
    if (i == 0) memcpy(expected, result, RESULT_BYTES);
    errors[i] = error();
  }
  double begin = now();
  int done = 0;
  for (; done < rounds && (done < 3 || now() - begin < seconds * 1e6); done++)
    for (int i = 0; i < chosen; i++) {
      const candidate *c = &candidates[atoi(words[6 + (i + done) % chosen])];
      prepare();
      double before = now();
      call(c);
      samples[(size_t)((i + done) % chosen) * MOST_ROUNDS + done] = now() - before;
    }
  for (int i = 0; i < chosen; i++) {
    printf("%s %g", words[6 + i], errors[i]);
    for (int r = 0; r < done; r++) printf(" %.3f", samples[(size_t)i * MOST_ROUNDS + r]);
    printf("\n");
  }
  return 0;
}

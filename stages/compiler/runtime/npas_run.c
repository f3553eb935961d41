/* The whole runtime: a table of steps, run in order, each by all threads. Needs nothing but a clock, and with more than one thread POSIX threads.
   The table, the weights and the manifest are in the generated file that includes this one and defines NPAS_MOST_THREADS. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* which processor a thread is on */
#endif
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { NPAS_NONE, NPAS_WORKSPACE, NPAS_WEIGHTS, NPAS_INPUT, NPAS_OUTPUT, NPAS_SCRATCH };
enum { NPAS_OPERANDS = 10 };

typedef void (*npas_kernel)(const void *, const void *, const void *, const void *, const void *, const void *, const void *, const void *, void *, void *, int32_t, int32_t);
typedef struct { uint32_t space; uint64_t place; } npas_operand; /* place: byte offset, or the number of the input or output */
typedef struct { npas_kernel kernel; int32_t units; npas_operand operands[NPAS_OPERANDS]; } npas_step;
typedef struct { const void *const *inputs; void *const *outputs; char *workspace; int threads; double *milliseconds; } npas_job;

extern const npas_step npas_steps[];
extern const unsigned npas_step_count;
extern const unsigned char npas_weights[];
extern const size_t npas_scratch_place, npas_scratch_bytes;

static void *npas_address(npas_operand o, const npas_job *job, int thread) {
  switch (o.space) {
    case NPAS_WORKSPACE: return job->workspace + o.place;
    case NPAS_WEIGHTS: return (void *)(npas_weights + o.place);
    case NPAS_INPUT: return (void *)job->inputs[o.place];
    case NPAS_OUTPUT: return job->outputs[o.place];
    case NPAS_SCRATCH: return job->workspace + npas_scratch_place + thread * npas_scratch_bytes;
    default: return NULL;
  }
}

/* The thread's share of a step's units. Always the same share, so that what a core wrote it often reads again. */
static void npas_call(const npas_step *s, const npas_job *job, int thread) {
  void *a[NPAS_OPERANDS];
  int32_t lo = (int32_t)((int64_t)s->units * thread / job->threads), hi = (int32_t)((int64_t)s->units * (thread + 1) / job->threads);
  if (lo == hi) return;
  for (int i = 0; i < NPAS_OPERANDS; i++) a[i] = npas_address(s->operands[i], job, thread);
  s->kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], lo, hi);
}

static double npas_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

#if NPAS_MOST_THREADS > 1
#include "npas_pool.c"
#else
static int npas_start(const npas_job *job) { (void)job; return 0; }
static void npas_meet(const npas_job *job, unsigned meeting) { (void)job, (void)meeting; }
static void npas_finish(const npas_job *job) { (void)job; }
#endif

/* All steps as thread number `thread` of the job; nobody begins a step before everybody has ended the one before. */
static void npas_work(const npas_job *job, int thread) {
  double before = thread == 0 && job->milliseconds ? npas_now() : 0;
  for (unsigned i = 0; i < npas_step_count; i++) {
    npas_call(&npas_steps[i], job, thread);
    npas_meet(job, i + 1);
    if (thread == 0 && job->milliseconds) {
      double after = npas_now();
      job->milliseconds[i] = after - before;
      before = after;
    }
  }
}

/* 0: done. 1: more threads than it was compiled for. 2: the workspace isn't aligned to 64 bytes. 3: threads can't be started. */
static int npas_all(npas_job job) {
  if (job.threads < 1) job.threads = 1;
  if (job.threads > NPAS_MOST_THREADS) return 1;
  if ((uintptr_t)job.workspace % 64) return 2;
  if (npas_start(&job)) return 3;
  npas_work(&job, 0);
  npas_finish(&job);
  return 0;
}

int npas_run(const void *const *inputs, void *const *outputs, void *workspace, int threads) {
  return npas_all((npas_job){inputs, outputs, workspace, threads, NULL});
}

int npas_profile(const void *const *inputs, void *const *outputs, void *workspace, int threads, double *milliseconds) {
  return npas_all((npas_job){inputs, outputs, workspace, threads, milliseconds});
}

/* The whole runtime: a table of steps, run in order. Reentrant; needs nothing but a clock. The table, the weights and the manifest are in the generated file that includes this one. */
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { NPAS_NONE, NPAS_WORKSPACE, NPAS_WEIGHTS, NPAS_INPUT, NPAS_OUTPUT };
enum { NPAS_OPERANDS = 9 };

typedef void (*npas_kernel)(const void *, const void *, const void *, const void *, const void *, const void *, const void *, const void *, void *);
typedef struct { uint32_t space; uint64_t place; } npas_operand; /* place: byte offset, or the number of the input or output */
typedef struct { npas_kernel kernel; npas_operand operands[NPAS_OPERANDS]; } npas_step;

extern const npas_step npas_steps[];
extern const unsigned npas_step_count;
extern const unsigned char npas_weights[];

static void *npas_address(npas_operand o, const void *const *inputs, void *const *outputs, void *workspace) {
  switch (o.space) {
    case NPAS_WORKSPACE: return (char *)workspace + o.place;
    case NPAS_WEIGHTS: return (void *)(npas_weights + o.place);
    case NPAS_INPUT: return (void *)inputs[o.place];
    case NPAS_OUTPUT: return outputs[o.place];
    default: return NULL;
  }
}

static void npas_call(const npas_step *s, const void *const *inputs, void *const *outputs, void *workspace) {
  void *a[NPAS_OPERANDS];
  for (int i = 0; i < NPAS_OPERANDS; i++) a[i] = npas_address(s->operands[i], inputs, outputs, workspace);
  s->kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]);
}

static double npas_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

/* 0: done. 1: more than one thread was asked for. 2: the workspace isn't aligned to 64 bytes. */
static int npas_refuse(const void *workspace, int threads) {
  if (threads > 1) return 1;
  return (uintptr_t)workspace % 64 ? 2 : 0;
}

int npas_run(const void *const *inputs, void *const *outputs, void *workspace, int threads) {
  int refused = npas_refuse(workspace, threads);
  if (refused) return refused;
  for (unsigned i = 0; i < npas_step_count; i++) npas_call(&npas_steps[i], inputs, outputs, workspace);
  return 0;
}

int npas_profile(const void *const *inputs, void *const *outputs, void *workspace, int threads, double *milliseconds) {
  int refused = npas_refuse(workspace, threads);
  if (refused) return refused;
  double before = npas_now();
  for (unsigned i = 0; i < npas_step_count; i++) {
    npas_call(&npas_steps[i], inputs, outputs, workspace);
    double after = npas_now();
    milliseconds[i] = after - before;
    before = after;
  }
  return 0;
}

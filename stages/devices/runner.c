/* The program that runs compiled networks: loads models, checks what they need, times them in interleaved rounds. C11 and POSIX only.
 *
 *   runner --events FILE --model SO OUTPUTS KERNELS [--model ...] [--input RAW ...] [--save PREFIX] [options]
 *
 * OUTPUTS are the byte sizes of the model's outputs ("40,4096"); KERNELS is the number of entries that npas_profile fills. Both stand in the
 * manifest, which `--describe` writes to PREFIX.<model>.manifest.json; so the runner itself reads no JSON.
 * Every event is one JSON line, written outside the timed region: a reader may poll the file, and a run that dies keeps what it measured.
 * With --expect PREFIX TOLERANCE the first outputs are compared with PREFIX.<model>.<output>.raw, and nothing is timed unless all are right.
 * With --silence SECONDS the program ends itself when that long no event was written: nobody else may be there to stop it on a phone.
 *
 * A host model is a shared object. A phone has static executables that can't dlopen: with -DNPAS_STATIC='"models.inc"' the models are linked in;
 * models.inc holds one MODEL(prefix) a line, for the symbols prefix_npas_run and so on, and `--model prefix ...` names one of them.
 *
 * Exit: 0 done, 2 bad arguments, 3 an error that the last line of FILE tells, 4 wrong outputs (the "check" events tell), 124 silent for too long. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { MAX_MODELS = 16, MAX_TENSORS = 64, ALIGNMENT = 64, FREQUENCY_EVERY = 10 };

typedef const char *(*manifest_fn)(void);
typedef size_t (*workspace_fn)(void);
typedef int (*run_fn)(const void *const *, void *const *, void *, int);
typedef int (*profile_fn)(const void *const *, void *const *, void *, int, double *);

typedef struct {
  const char *path;
  int outputs, kernels;
  size_t bytes[MAX_TENSORS];
  void *out[MAX_TENSORS], *first[MAX_TENSORS], *workspace;
  double *kernel_ms;
  manifest_fn manifest;
  workspace_fn workspace_bytes;
  run_fn run;
  profile_fn profile;
} Model;

static Model models[MAX_MODELS];
static int model_count, input_count, threads = 1;
static const char *input_paths[MAX_TENSORS];
static const void *inputs[MAX_TENSORS];
static FILE *events;
static struct itimerval silence;
static cpu_set_t mask; /* the cores that the system says this process has */

static double seconds(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void json_string(const char *text) {
  fputc('"', events);
  for (const unsigned char *c = (const unsigned char *)text; *c; c++)
    if (*c == '"' || *c == '\\') fprintf(events, "\\%c", *c);
    else if (*c < 32) fprintf(events, "\\u%04x", *c);
    else fputc(*c, events);
  fputc('"', events);
}

_Noreturn static void fail(const char *format, ...) {
  char text[4096];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fprintf(events, "{\"event\": \"error\", \"message\": ");
  json_string(text);
  fprintf(events, "}\n");
  fclose(events);
  exit(3);
}

_Noreturn static void usage(const char *text) {
  fprintf(stderr, "runner: %s\n", text);
  exit(2);
}

static void numbers(const char *name, const double *values, int count) {
  fprintf(events, "\"%s\": [", name);
  for (int i = 0; i < count; i++) fprintf(events, "%s%.6f", i ? ", " : "", values[i]);
  fprintf(events, "]");
}

static void end_event(void) {
  fprintf(events, "}\n");
  fflush(events);
  if (silence.it_value.tv_sec || silence.it_value.tv_usec) setitimer(ITIMER_REAL, &silence, NULL);
}

static void too_silent(int number) {
  static const char line[] = "\n{\"event\": \"silent\"}\n"; /* on a line of its own: the last one may be unfinished */
  (void)number;
  if (write(fileno(events), line, sizeof line - 1) < 0) _exit(125);
  _exit(124);
}

static void watch(double least_seconds) {
  silence.it_value.tv_sec = (time_t)least_seconds;
  silence.it_value.tv_usec = (suseconds_t)(1e6 * (least_seconds - (double)(time_t)least_seconds));
  signal(SIGALRM, too_silent);
  setitimer(ITIMER_REAL, &silence, NULL);
}

static void *aligned(size_t bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, ALIGNMENT, bytes ? bytes : 1)) fail("no memory for %zu bytes", bytes);
  memset(memory, 0, bytes); /* touch the pages now, not in the first timed run */
  return memory;
}

/* Loading ------------------------------------------------------------------------------------------------------------------------------ */
#ifdef NPAS_STATIC
#define MODEL(prefix)                                                                                                                           \
  extern const char *prefix##_npas_manifest(void);                                                                                              \
  extern size_t prefix##_npas_workspace_bytes(void);                                                                                            \
  extern int prefix##_npas_run(const void *const *, void *const *, void *, int);                                                                \
  extern int prefix##_npas_profile(const void *const *, void *const *, void *, int, double *);
#include NPAS_STATIC
#undef MODEL

static void link_model(Model *m) {
#define MODEL(prefix)                                                                                                                           \
  if (!strcmp(m->path, #prefix)) {                                                                                                              \
    m->manifest = prefix##_npas_manifest, m->workspace_bytes = prefix##_npas_workspace_bytes;                                                   \
    m->run = prefix##_npas_run, m->profile = prefix##_npas_profile;                                                                             \
    return;                                                                                                                                     \
  }
#include NPAS_STATIC
#undef MODEL
  fail("%s is not linked into this runner", m->path);
}
#else
#include <dlfcn.h>

static void link_model(Model *m) {
  void *library = dlopen(m->path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail("can't load the model: %s", dlerror());
  m->manifest = (manifest_fn)dlsym(library, "npas_manifest");
  m->workspace_bytes = (workspace_fn)dlsym(library, "npas_workspace_bytes");
  m->run = (run_fn)dlsym(library, "npas_run");
  m->profile = (profile_fn)dlsym(library, "npas_profile");
  if (!m->manifest || !m->workspace_bytes || !m->run)
    fail("%s is not a compiled network: no symbol %s", m->path, !m->manifest ? "npas_manifest" : !m->run ? "npas_run" : "npas_workspace_bytes");
}
#endif

static void *read_file(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  if (!file) fail("can't read %s: %s", path, strerror(errno));
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  void *memory = aligned(*bytes);
  if (fread(memory, 1, *bytes, file) != *bytes) fail("can't read %s: it is shorter than its size", path);
  fclose(file);
  return memory;
}

static void write_file(const char *prefix, int model, const char *suffix, const void *data, size_t bytes) {
  char path[4096];
  snprintf(path, sizeof path, "%s.%d.%s", prefix, model, suffix);
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file)) fail("can't write %s: %s", path, strerror(errno));
}

static void save_outputs(const char *prefix, int model) {
  char suffix[32];
  for (int o = 0; o < models[model].outputs; o++) {
    snprintf(suffix, sizeof suffix, "%d.raw", o);
    write_file(prefix, model, suffix, models[model].out[o], models[model].bytes[o]);
  }
}

/* Running ------------------------------------------------------------------------------------------------------------------------------ */
static void run_model(int index) {
  Model *m = &models[index];
  int code = m->run(inputs, m->out, m->workspace, threads);
  if (code) fail("%s: npas_run returned %d", m->path, code);
}

/* The order of a round: the first model moves on by one each round, the direction turns after every full turn. So each model runs equally often
 * in each place and after each other one, and no model always finds the caches as the same neighbour left them. */
static int place(int round, int i) {
  int n = model_count, step = (round / n) % 2 ? n - i : i;
  return (round + step) % n;
}

static void pin(char *list) {
  cpu_set_t wanted;
  int requested = 0, error = 0;
  CPU_ZERO(&wanted);
  for (char *word = strtok(list, ","); word; word = strtok(NULL, ",")) {
    int cpu = atoi(word);
    if (cpu < 0 || cpu >= CPU_SETSIZE) usage("no such core");
    CPU_SET(cpu, &wanted), requested++;
  }
  if (requested && sched_setaffinity(0, sizeof wanted, &wanted)) error = errno;
  sched_getaffinity(0, sizeof mask, &mask); /* read back: some systems accept a mask and ignore it */
  fprintf(events, "{\"event\": \"affinity\", \"cpus\": [");
  for (int cpu = 0, first = 1; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &mask)) fprintf(events, "%s%d", first ? "" : ", ", cpu), first = 0;
  fprintf(events, "], \"error\": ");
  json_string(error ? strerror(error) : "");
  end_event();
}

/* The clock of every core of the mask, where it may be read. */
static void frequency(int round) {
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    char path[128];
    int khz = 0;
    if (!CPU_ISSET(cpu, &mask)) continue;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq", cpu);
    FILE *file = fopen(path, "r");
    if (!file) continue;
    if (fscanf(file, "%d", &khz) == 1) {
      fprintf(events, "{\"event\": \"frequency\", \"round\": %d, \"cpu\": %d, \"khz\": %d", round, cpu, khz);
      end_event();
    }
    fclose(file);
  }
}

static void warm_up(int least_runs, double least_seconds) {
  double start = seconds(CLOCK_MONOTONIC);
  for (int done = 0; done < least_runs || seconds(CLOCK_MONOTONIC) - start < least_seconds; done++) {
    for (int i = 0; i < model_count; i++) run_model(i);
    fprintf(events, "{\"event\": \"warm\", \"runs\": %d", done + 1);
    end_event();
  }
}

/* One sample: `settle` untimed runs of the same model first, so that caches and branch predictors are its own and not its neighbour's. */
static void sample(int index, int settle, double *wall, double *cpu) {
  for (int i = 0; i < settle; i++) run_model(index);
  double cpu_start = seconds(CLOCK_PROCESS_CPUTIME_ID), start = seconds(CLOCK_MONOTONIC);
  run_model(index);
  *wall = 1e3 * (seconds(CLOCK_MONOTONIC) - start);
  *cpu = 1e3 * (seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_start);
}

static void time_rounds(int rounds, int settle) {
  double wall[MAX_MODELS], cpu[MAX_MODELS];
  for (int r = 0; r < rounds; r++) {
    if (r % FREQUENCY_EVERY == 0) frequency(r);
    for (int i = 0; i < model_count; i++) sample(place(r, i), settle, &wall[place(r, i)], &cpu[place(r, i)]);
    fprintf(events, "{\"event\": \"round\", \"index\": %d, \"cpu\": %d, ", r, sched_getcpu());
    numbers("ms", wall, model_count);
    fprintf(events, ", ");
    numbers("cpu_ms", cpu, model_count);
    end_event();
  }
  frequency(rounds);
}

static void profile_rounds(int rounds) {
  for (int r = 0; r < rounds; r++)
    for (int i = 0; i < model_count; i++) {
      Model *m = &models[place(r, i)];
      if (!m->profile) fail("%s has no symbol npas_profile", m->path);
      int code = m->profile(inputs, m->out, m->workspace, threads, m->kernel_ms);
      if (code) fail("%s: npas_profile returned %d", m->path, code);
      fprintf(events, "{\"event\": \"profile\", \"model\": %d, ", place(r, i));
      numbers("ms", m->kernel_ms, m->kernels);
      end_event();
    }
}

static void check_stable(void) {
  for (int i = 0; i < model_count; i++) {
    int same = 1;
    for (int o = 0; o < models[i].outputs; o++) same = same && !memcmp(models[i].out[o], models[i].first[o], models[i].bytes[o]);
    fprintf(events, "{\"event\": \"stable\", \"model\": %d, \"same\": %s", i, same ? "true" : "false");
    end_event();
  }
}

static void load_model(int index) {
  Model *m = &models[index];
  double start = seconds(CLOCK_MONOTONIC);
  link_model(m);
  size_t bytes = m->workspace_bytes();
  m->workspace = aligned(bytes);
  double init = 1e3 * (seconds(CLOCK_MONOTONIC) - start);
  for (int o = 0; o < m->outputs; o++) m->out[o] = aligned(m->bytes[o]), m->first[o] = aligned(m->bytes[o]);
  m->kernel_ms = aligned((size_t)(m->kernels + 1) * sizeof(double));
  fprintf(events, "{\"event\": \"loaded\", \"model\": %d, \"init_ms\": %.6f, \"workspace_bytes\": %zu", index, init, bytes);
  end_event();
}

static void first_run(int index, const char *save) {
  Model *m = &models[index];
  double wall, cpu;
  sample(index, 0, &wall, &cpu);
  for (int o = 0; o < m->outputs; o++) memcpy(m->first[o], m->out[o], m->bytes[o]);
  if (save) save_outputs(save, index);
  fprintf(events, "{\"event\": \"first\", \"model\": %d, \"ms\": %.6f", index, wall);
  end_event();
}

/* 1 when the first outputs of the model are within tolerance times the largest expected value of PREFIX.<model>.<output>.raw; a NaN never is. */
static int check(int index, const char *prefix, double tolerance) {
  Model *m = &models[index];
  double error = 0, largest = 0;
  int sane = 1;
  for (int o = 0; o < m->outputs; o++) {
    char path[4096];
    size_t bytes;
    snprintf(path, sizeof path, "%s.%d.%d.raw", prefix, index, o);
    float *wanted = read_file(path, &bytes), *found = m->out[o];
    sane = sane && bytes == m->bytes[o];
    for (size_t i = 0; sane && i < bytes / sizeof(float); i++) {
      double difference = fabs((double)found[i] - (double)wanted[i]);
      sane = isfinite(difference);
      if (difference > error) error = difference;
      if (fabs((double)wanted[i]) > largest) largest = fabs((double)wanted[i]);
    }
    free(wanted);
  }
  int ok = sane && error <= tolerance * largest;
  fprintf(events, "{\"event\": \"check\", \"model\": %d, \"max_abs_err\": %.9g, \"max_abs_output\": %.9g, \"ok\": %s", index, error, largest, ok ? "true" : "false");
  end_event();
  return ok;
}

static void add_model(char **words) {
  if (model_count == MAX_MODELS) usage("too many models");
  Model *m = &models[model_count++];
  m->path = words[0], m->kernels = atoi(words[2]);
  for (char *word = strtok(words[1], ","); word; word = strtok(NULL, ",")) {
    if (m->outputs == MAX_TENSORS) usage("too many outputs");
    m->bytes[m->outputs++] = (size_t)strtoull(word, NULL, 10);
  }
}

int main(int argc, char **argv) {
  const char *events_path = NULL, *save = NULL, *expect = NULL;
  char *cpus = NULL;
  int runs = 0, warmup = 0, settle = 0, profile = 0, describe = 0, right = 1;
  double warmup_seconds = 0, tolerance = 0, silent_seconds = 0;
  for (int i = 1; i < argc; i++) {
    const char *option = argv[i];
    int left = argc - i - 1;
    if (!strcmp(option, "--describe")) describe = 1;
    else if (!strcmp(option, "--die-with-parent")) prctl(PR_SET_PDEATHSIG, SIGKILL);
    else if (!strcmp(option, "--model") && left >= 3) add_model(argv + i + 1), i += 3;
    else if (!strcmp(option, "--expect") && left >= 2) expect = argv[i + 1], tolerance = atof(argv[i + 2]), i += 2;
    else if (left < 1) usage("an option lacks its value");
    else if (!strcmp(option, "--events")) events_path = argv[++i];
    else if (!strcmp(option, "--save")) save = argv[++i];
    else if (!strcmp(option, "--input") && input_count < MAX_TENSORS) input_paths[input_count++] = argv[++i];
    else if (!strcmp(option, "--cpus")) cpus = argv[++i];
    else if (!strcmp(option, "--threads")) threads = atoi(argv[++i]);
    else if (!strcmp(option, "--runs")) runs = atoi(argv[++i]);
    else if (!strcmp(option, "--warmup")) warmup = atoi(argv[++i]);
    else if (!strcmp(option, "--warmup-seconds")) warmup_seconds = atof(argv[++i]);
    else if (!strcmp(option, "--settle")) settle = atoi(argv[++i]);
    else if (!strcmp(option, "--profile")) profile = atoi(argv[++i]);
    else if (!strcmp(option, "--silence")) silent_seconds = atof(argv[++i]);
    else usage("unknown option, or too many inputs");
  }
  if (!events_path || !model_count || (describe && !save)) usage("needs --events and --model, and --save with --describe");
  if (!(events = fopen(events_path, "w"))) usage("can't write the events file");
  if (describe) {
    for (int i = 0; i < model_count; i++) link_model(&models[i]), write_file(save, i, "manifest.json", models[i].manifest(), strlen(models[i].manifest()));
    return fclose(events) ? 3 : 0;
  }
  if (silent_seconds > 0) watch(silent_seconds);
  if (cpus) pin(cpus);
  size_t bytes;
  for (int i = 0; i < input_count; i++) inputs[i] = read_file(input_paths[i], &bytes);
  for (int i = 0; i < model_count; i++) load_model(i);
  for (int i = 0; i < model_count; i++) first_run(i, save);
  for (int i = 0; expect && i < model_count; i++) right &= check(i, expect, tolerance);
  if (!right) return fclose(events) ? 3 : 4;
  if (runs || profile) warm_up(warmup, warmup_seconds);
  if (runs) time_rounds(runs, settle);
  if (profile) profile_rounds(profile);
  if (runs || profile) check_stable();
  fprintf(events, "{\"event\": \"end\"");
  end_event();
  return fclose(events) ? 3 : 0;
}

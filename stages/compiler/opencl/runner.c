/* The program that runs a network on a GPU through OpenCL: reads kernels.cl, plan.json and weights.bin of a folder, computes, and times. C11 and POSIX only; needs no OpenCL headers and links no OpenCL library.
 *
 *   runner FOLDER [--input RAW]... [--save PREFIX] [--warmup N] [--runs N] [--profile N]
 *
 * Inputs are raw float32 files in the order of the plan, zeros where none are given. With --save the outputs go to PREFIX.<output>.raw. Events are JSON lines on stdout: "device" (what it found), "ready"
 * (milliseconds to build the kernels, and of the first run), one "sample" for each of --runs (all launches of a run, without the transfers), one "launch" each with --profile (mean of so many runs,
 * by the device's own clock), "error".
 *
 * Phones keep libOpenCL in different places, and some have a library without a platform: each of LIBRARIES is tried until one has a device; $NPAS_OPENCL_LIBRARY is tried before them. A GPU is preferred.
 *
 * Exit: 0 done, 2 bad arguments, 3 an error that the last line tells, 5 no OpenCL device. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What is needed of OpenCL 1.2 (Khronos specification, sections 4 to 5). Handles are opaque pointers. */
typedef int32_t cl_int;
typedef uint32_t cl_uint;
typedef uint64_t cl_bits;
typedef void *cl_handle;
enum {
  CL_DEVICE_NOT_FOUND = -1,
  CL_PLATFORM_NAME = 0x0902, CL_PLATFORM_VERSION = 0x0901,
  CL_DEVICE_TYPE_GPU = 4, CL_DEVICE_TYPE = 0x1000, CL_DEVICE_NAME = 0x102B, CL_DRIVER_VERSION = 0x102D, CL_DEVICE_EXTENSIONS = 0x1030,
  CL_QUEUE_PROFILING_ENABLE = 2, CL_MEM_READ_WRITE = 1, CL_MEM_READ_ONLY = 4, CL_MEM_COPY_HOST_PTR = 32,
  CL_PROGRAM_BUILD_LOG = 0x1183, CL_PROFILING_COMMAND_START = 0x1282, CL_PROFILING_COMMAND_END = 0x1283,
};
#define CL_DEVICE_TYPE_ALL 0xFFFFFFFFu

#define FUNCTIONS(F) \
  F(cl_int, clGetPlatformIDs, (cl_uint, cl_handle *, cl_uint *)) \
  F(cl_int, clGetPlatformInfo, (cl_handle, cl_uint, size_t, void *, size_t *)) \
  F(cl_int, clGetDeviceIDs, (cl_handle, cl_bits, cl_uint, cl_handle *, cl_uint *)) \
  F(cl_int, clGetDeviceInfo, (cl_handle, cl_uint, size_t, void *, size_t *)) \
  F(cl_handle, clCreateContext, (const intptr_t *, cl_uint, const cl_handle *, void *, void *, cl_int *)) \
  F(cl_handle, clCreateCommandQueue, (cl_handle, cl_handle, cl_bits, cl_int *)) \
  F(cl_handle, clCreateBuffer, (cl_handle, cl_bits, size_t, void *, cl_int *)) \
  F(cl_handle, clCreateProgramWithSource, (cl_handle, cl_uint, const char **, const size_t *, cl_int *)) \
  F(cl_int, clBuildProgram, (cl_handle, cl_uint, const cl_handle *, const char *, void *, void *)) \
  F(cl_int, clGetProgramBuildInfo, (cl_handle, cl_handle, cl_uint, size_t, void *, size_t *)) \
  F(cl_handle, clCreateKernel, (cl_handle, const char *, cl_int *)) \
  F(cl_int, clSetKernelArg, (cl_handle, cl_uint, size_t, const void *)) \
  F(cl_int, clEnqueueNDRangeKernel, (cl_handle, cl_handle, cl_uint, const size_t *, const size_t *, const size_t *, cl_uint, const cl_handle *, cl_handle *)) \
  F(cl_int, clEnqueueWriteBuffer, (cl_handle, cl_handle, cl_uint, size_t, size_t, const void *, cl_uint, const cl_handle *, cl_handle *)) \
  F(cl_int, clEnqueueReadBuffer, (cl_handle, cl_handle, cl_uint, size_t, size_t, void *, cl_uint, const cl_handle *, cl_handle *)) \
  F(cl_int, clGetEventProfilingInfo, (cl_handle, cl_uint, size_t, void *, size_t *)) \
  F(cl_int, clReleaseEvent, (cl_handle)) \
  F(cl_int, clFinish, (cl_handle))

#define DECLARE(result, name, arguments) static result (*name) arguments;
FUNCTIONS(DECLARE)

static const char *const LIBRARIES[] = {
  "libOpenCL.so", "libOpenCL.so.1", "/vendor/lib64/libOpenCL.so", "/system/vendor/lib64/libOpenCL.so", "/system/lib64/libOpenCL.so",
  "libGLES_mali.so", "/vendor/lib64/egl/libGLES_mali.so", "/system/vendor/lib64/egl/libGLES_mali.so", "libPVROCL.so", "/vendor/lib64/libPVROCL.so", "/system/vendor/lib64/libPVROCL.so",
};
enum { TEXT = 8192, NAME = 256, NO_DEVICE = 5 };

typedef struct {
  cl_handle kernel;
  char layer[NAME], name[NAME];
  size_t items, group;
  double ms;
} Launch;

static cl_handle platform, device, context, queue, *buffers;
static size_t *sizes, buffer_count, array_count, launch_count, input_count, output_count, *inputs, *outputs;
static Launch *launches;

/* A string as JSON writes it. */
static void quoted(const char *text) {
  putchar('"');
  for (; *text; text++) {
    if (*text == '"' || *text == '\\') putchar('\\');
    if ((unsigned char)*text >= ' ') putchar(*text);
    else printf("\\u%04x", *text);
  }
  putchar('"');
}

static void fail(int code, const char *what, const char *about) {
  char message[TEXT + NAME];
  snprintf(message, sizeof message, what, about);
  printf("{\"event\": \"error\", \"message\": ");
  quoted(message);
  puts("}");
  fflush(stdout);
  exit(code);
}

static void check(cl_int code, const char *call) {
  char about[2 * NAME];
  snprintf(about, sizeof about, "%s (code %d)", call, (int)code);
  if (code) fail(3, "OpenCL refused %s", about);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count + 1, size);
  if (!memory) fail(3, "there is no memory left%s", "");
  return memory;
}

/* ---- plan.json: numbers and strings in the order in which generate.py writes them; names hold neither quotes nor backslashes ---- */

static const char *cursor;

static char *read_file(const char *folder, const char *name, size_t *size) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) fail(2, "the path of %s is too long", name);
  FILE *file = fopen(path, "rb");
  if (!file) fail(2, "can't read %s", path);
  fseek(file, 0, SEEK_END);
  *size = (size_t)ftell(file);
  rewind(file);
  char *content = allocate(*size, 1);
  if (fread(content, 1, *size, file) != *size) fail(3, "can't read %s", path);
  fclose(file);
  return content;
}

/* To behind the key's colon. */
static void key(const char *name) {
  char wanted[NAME];
  snprintf(wanted, sizeof wanted, "\"%s\":", name);
  cursor = strstr(cursor, wanted);
  if (!cursor) fail(3, "plan.json has no %s", name);
  cursor += strlen(wanted);
}

static void text(char *into) {
  const char *begin = strchr(cursor, '"'), *end = begin ? strchr(begin + 1, '"') : NULL;
  if (!end || end - begin > NAME) fail(3, "plan.json is damaged%s", "");
  memcpy(into, begin + 1, (size_t)(end - begin - 1));
  into[end - begin - 1] = 0;
  cursor = end + 1;
}

/* The next number of a list; 0 at its end. */
static int number(size_t *value) {
  cursor += strspn(cursor, " ,\n[");
  if (*cursor < '0' || *cursor > '9') return 0;
  char *end;
  *value = strtoull(cursor, &end, 10);
  cursor = end;
  return 1;
}

static size_t *numbers(size_t *count) {
  size_t *found = allocate(0, sizeof *found), value;
  for (*count = 0; number(&value); found[(*count)++] = value)
    if (!(found = realloc(found, (*count + 2) * sizeof *found))) fail(3, "there is no memory left%s", "");
  return found;
}

/* ---- OpenCL ---- */

static int find_device(void *library) {
#define FIND(result, name, arguments) if (!(*(void **)&name = dlsym(library, #name))) return 0;
  FUNCTIONS(FIND)
  cl_handle platforms[16], found;
  cl_uint count = 0;
  if (clGetPlatformIDs(16, platforms, &count)) return 0;
  for (int gpu = 1; gpu >= 0; gpu--)
    for (cl_uint i = 0; i < count && i < 16; i++)
      if (!clGetDeviceIDs(platforms[i], gpu ? CL_DEVICE_TYPE_GPU : CL_DEVICE_TYPE_ALL, 1, &found, NULL)) {
        platform = platforms[i];
        device = found;
        return 1;
      }
  return 0;
}

static void open_device(void) {
  const char *own = getenv("NPAS_OPENCL_LIBRARY"), *used = NULL;
  void *library = own ? dlopen(own, RTLD_NOW) : NULL;
  if (library && find_device(library)) used = own;
  for (size_t i = 0; !used && i < sizeof LIBRARIES / sizeof *LIBRARIES; i++)
    if ((library = dlopen(LIBRARIES[i], RTLD_NOW)) && find_device(library)) used = LIBRARIES[i];
  if (!used) fail(NO_DEVICE, "no OpenCL library with a device was found%s", "");
  static char name[TEXT], version[TEXT], chip[TEXT], driver[TEXT], extensions[4 * TEXT];
  cl_bits type = 0;
  clGetPlatformInfo(platform, CL_PLATFORM_NAME, sizeof name - 1, name, NULL);
  clGetPlatformInfo(platform, CL_PLATFORM_VERSION, sizeof version - 1, version, NULL);
  clGetDeviceInfo(device, CL_DEVICE_NAME, sizeof chip - 1, chip, NULL);
  clGetDeviceInfo(device, CL_DRIVER_VERSION, sizeof driver - 1, driver, NULL);
  clGetDeviceInfo(device, CL_DEVICE_EXTENSIONS, sizeof extensions - 1, extensions, NULL);
  clGetDeviceInfo(device, CL_DEVICE_TYPE, sizeof type, &type, NULL);
  printf("{\"event\": \"device\", \"gpu\": %s, \"half\": %s, \"library\": ", type & CL_DEVICE_TYPE_GPU ? "true" : "false", strstr(extensions, "cl_khr_fp16") ? "true" : "false");
  quoted(used);
  const char *const labels[] = {"platform", "version", "device", "driver"}, *const values[] = {name, version, chip, driver};
  for (int i = 0; i < 4; i++) printf(", \"%s\": ", labels[i]), quoted(values[i]);
  puts("}");
  fflush(stdout);
  cl_int code;
  context = clCreateContext(NULL, 1, &device, NULL, NULL, &code);
  check(code, "a context");
  queue = clCreateCommandQueue(context, device, CL_QUEUE_PROFILING_ENABLE, &code);
  check(code, "a queue");
}

static cl_handle build(const char *folder) {
  size_t size;
  const char *source = read_file(folder, "kernels.cl", &size);
  cl_int code;
  cl_handle program = clCreateProgramWithSource(context, 1, &source, &size, &code);
  check(code, "the kernels' source");
  if (clBuildProgram(program, 1, &device, "-cl-std=CL1.2 -cl-mad-enable", NULL, NULL)) {
    static char log[TEXT];
    clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, NULL);
    fail(3, "the kernels can't be built: %s", log);
  }
  return program;
}

/* Buffers, weights and launches with their arguments. */
static void load(const char *folder) {
  size_t size, weight_bytes, begin, length;
  cl_int code;
  cl_handle program = build(folder);
  cursor = read_file(folder, "plan.json", &size);
  char *weights = read_file(folder, "weights.bin", &weight_bytes);
  key("buffers"), sizes = numbers(&buffer_count);
  key("arrays");
  buffers = allocate(buffer_count, sizeof *buffers);
  for (size_t i = 0; i < buffer_count; i++) buffers[i] = clCreateBuffer(context, CL_MEM_READ_WRITE, sizes[i], NULL, &code), check(code, "memory for activations");
  while (number(&begin) && number(&length)) {
    cursor += strspn(cursor, " ,\n]");
    if (begin + length > weight_bytes) fail(3, "weights.bin is too short%s", "");
    if (!(buffers = realloc(buffers, (buffer_count + array_count + 2) * sizeof *buffers))) fail(3, "there is no memory left%s", "");
    buffers[buffer_count + array_count++] = clCreateBuffer(context, CL_MEM_READ_ONLY | CL_MEM_COPY_HOST_PTR, length, weights + begin, &code);
    check(code, "memory for weights");
  }
  free(weights);
  key("inputs"), inputs = numbers(&input_count);
  key("outputs"), outputs = numbers(&output_count);
  key("launch_count");
  if (!number(&launch_count)) fail(3, "plan.json is damaged%s", "");
  launches = allocate(launch_count, sizeof *launches);
  for (Launch *launch = launches; launch < launches + launch_count; launch++) {
    key("layer"), text(launch->layer);
    key("kernel"), text(launch->name);
    key("items"), number(&launch->items);
    key("group"), number(&launch->group);
    launch->kernel = clCreateKernel(program, launch->name, &code);
    check(code, launch->name);
    size_t argument;
    key("arguments");
    for (cl_uint k = 0; number(&argument); k++) {
      if (argument >= buffer_count + array_count) fail(3, "plan.json is damaged%s", "");
      check(clSetKernelArg(launch->kernel, k, sizeof *buffers, &buffers[argument]), launch->name);
    }
  }
}

static void enqueue(cl_handle *events) {
  for (size_t i = 0; i < launch_count; i++)
    check(clEnqueueNDRangeKernel(queue, launches[i].kernel, 1, NULL, &launches[i].items, &launches[i].group, 0, NULL, events ? events + i : NULL), launches[i].name);
  check(clFinish(queue), "to finish");
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static void profile(int runs) {
  cl_handle *events = allocate(launch_count, sizeof *events);
  for (int run = 0; run < runs; run++) {
    enqueue(events);
    for (size_t i = 0; i < launch_count; i++) {
      cl_bits start, end;
      check(clGetEventProfilingInfo(events[i], CL_PROFILING_COMMAND_START, sizeof start, &start, NULL), "times");
      check(clGetEventProfilingInfo(events[i], CL_PROFILING_COMMAND_END, sizeof end, &end, NULL), "times");
      launches[i].ms += 1e-6 * (double)(end - start) / runs;
      clReleaseEvent(events[i]);
    }
  }
  for (size_t i = 0; i < launch_count; i++) printf("{\"event\": \"launch\", \"layer\": \"%s\", \"kernel\": \"%s\", \"ms\": %.6f}\n", launches[i].layer, launches[i].name, launches[i].ms);
}

static void fill(size_t index, const char *path) {
  size_t bytes = sizes[inputs[index]];
  char *content = allocate(bytes, 1);
  if (path) {
    FILE *file = fopen(path, "rb");
    if (!file || fread(content, 1, bytes, file) != bytes || fgetc(file) != EOF) fail(2, "%s isn't as large as the network's input", path);
    fclose(file);
  }
  check(clEnqueueWriteBuffer(queue, buffers[inputs[index]], 1, 0, bytes, content, 0, NULL, NULL), "an input");
  free(content);
}

static void save(const char *prefix) {
  for (size_t i = 0; i < output_count; i++) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s.%zu.raw", prefix, i) >= (int)sizeof path) fail(2, "the path %s is too long", prefix);
    size_t bytes = sizes[outputs[i]];
    char *content = allocate(bytes, 1);
    check(clEnqueueReadBuffer(queue, buffers[outputs[i]], 1, 0, bytes, content, 0, NULL, NULL), "an output");
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(content, 1, bytes, file) != bytes || fclose(file)) fail(3, "can't write %s", path);
    free(content);
  }
}

int main(int argc, char **argv) {
  const char *given[64] = {0}, *prefix = NULL;
  size_t files = 0;
  int runs = 0, warmup = 0, profiled = 0;
  if (argc < 2) fail(2, "arguments: FOLDER [--input RAW]... [--save PREFIX] [--warmup N] [--runs N] [--profile N]%s", "");
  for (int i = 2; i < argc; i += 2) {
    const char *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (!value) fail(2, "%s needs a value", argv[i]);
    if (!strcmp(argv[i], "--input") && files < sizeof given / sizeof *given) given[files++] = value;
    else if (!strcmp(argv[i], "--save")) prefix = value;
    else if (!strcmp(argv[i], "--runs")) runs = atoi(value);
    else if (!strcmp(argv[i], "--warmup")) warmup = atoi(value);
    else if (!strcmp(argv[i], "--profile")) profiled = atoi(value);
    else fail(2, "unknown argument %s", argv[i]);
  }
  open_device();
  double begin = now();
  load(argv[1]);
  for (size_t i = 0; i < input_count; i++) fill(i, i < files ? given[i] : NULL);
  double built = now();
  enqueue(NULL);
  printf("{\"event\": \"ready\", \"build_ms\": %.3f, \"first_ms\": %.3f}\n", built - begin, now() - built);
  if (prefix) save(prefix);
  for (int i = 0; i < warmup; i++) enqueue(NULL);
  for (int i = 0; i < runs; i++) {
    double start = now();
    enqueue(NULL);
    printf("{\"event\": \"sample\", \"ms\": %.6f}\n", now() - start);
  }
  if (profiled) profile(profiled);
  return 0;
}

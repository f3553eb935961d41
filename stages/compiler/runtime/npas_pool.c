/* Threads that wait for the next run. Between the steps of a run they spin, because a step takes microseconds; between runs they spin briefly and then sleep.
   One run at a time has the pool; a second caller waits. The calling thread is thread 0. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { NPAS_SPINS = 4000 }; /* pauses before the processor is offered to others (some 50 us) */
static const double NPAS_IDLE_MILLISECONDS = 0.2; /* before a waiting thread sleeps: waking it takes some 50 us, and one run often follows another */

static void npas_work(const npas_job *job, int thread);

static struct {
  pthread_mutex_t run, sleep;
  pthread_cond_t wake;
  pthread_t threads[NPAS_MOST_THREADS];
  unsigned seen[NPAS_MOST_THREADS]; /* the last round before a thread was started */
  int started;                      /* threads besides the caller */
  npas_job job;
  atomic_uint round;   /* number of the latest run */
  atomic_uint taken;   /* copies of the job made by threads, ever */
  atomic_uint arrived; /* arrivals at meetings, ever: never reset, because somebody may still be leaving the last one */
  unsigned base;       /* arrivals before this run */
  unsigned expected;   /* copies of the job when every thread has this run's */
  atomic_int cpu[NPAS_MOST_THREADS]; /* where each thread began its latest run */
  int stop;
} npas_pool = {.run = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void npas_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void npas_await(atomic_uint *counter, unsigned wanted) {
  for (int spins = 0; (int)(atomic_load_explicit(counter, memory_order_acquire) - wanted) < 0; spins++) {
    if (spins < NPAS_SPINS) npas_pause();
    else sched_yield();
  }
}

/* Every thread of the job has come to the meeting with this number, counted from 1. */
static void npas_meet(const npas_job *job, unsigned meeting) {
  if (job->threads == 1) return;
  atomic_fetch_add_explicit(&npas_pool.arrived, 1, memory_order_acq_rel);
  npas_await(&npas_pool.arrived, npas_pool.base + meeting * (unsigned)job->threads);
}

static void npas_sleep(unsigned seen) {
  for (double end = npas_now() + NPAS_IDLE_MILLISECONDS; npas_now() < end;) {
    if (atomic_load_explicit(&npas_pool.round, memory_order_acquire) != seen) return;
    for (int pauses = 0; pauses < 10; pauses++) npas_pause();
  }
  pthread_mutex_lock(&npas_pool.sleep);
  while (atomic_load_explicit(&npas_pool.round, memory_order_acquire) == seen) pthread_cond_wait(&npas_pool.wake, &npas_pool.sleep);
  pthread_mutex_unlock(&npas_pool.sleep);
}

/* The scheduler may wake a thread on the processor of the one that woke it, and leave both there: then two threads take as long as one. So a thread that finds itself on the processor of one before it
   leaves that: it may run only on the others for a moment, and then on all again. */
static void npas_apart(int thread) {
#ifdef __linux__
  int here = sched_getcpu(), shared = 0;
  for (int other = 0; other < thread; other++) shared |= atomic_load_explicit(&npas_pool.cpu[other], memory_order_relaxed) == here;
  cpu_set_t allowed, others;
  if (shared && !sched_getaffinity(0, sizeof allowed, &allowed)) {
    others = allowed;
    for (int other = 0; other < thread; other++) {
      int taken = atomic_load_explicit(&npas_pool.cpu[other], memory_order_relaxed);
      if (taken >= 0) CPU_CLR((size_t)taken, &others);
    }
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others)) sched_setaffinity(0, sizeof allowed, &allowed);
    here = sched_getcpu();
  }
  atomic_store_explicit(&npas_pool.cpu[thread], here, memory_order_relaxed);
#else
  (void)thread;
#endif
}

static void *npas_thread(void *number) {
  int thread = (int)(intptr_t)number;
  for (unsigned seen = npas_pool.seen[thread];; seen++) {
    npas_sleep(seen);
    npas_job job = npas_pool.job;
    int stop = npas_pool.stop;
    atomic_fetch_add_explicit(&npas_pool.taken, 1, memory_order_acq_rel);
    if (stop) return NULL;
    if (thread >= job.threads) continue;
    npas_apart(thread);
    npas_work(&job, thread);
  }
}

static void npas_announce(void) {
  pthread_mutex_lock(&npas_pool.sleep);
  atomic_fetch_add_explicit(&npas_pool.round, 1, memory_order_acq_rel);
  pthread_cond_broadcast(&npas_pool.wake);
  pthread_mutex_unlock(&npas_pool.sleep);
}

/* Take the pool, with as many threads as the job wants, and give it the job. 0, or 1 when threads can't be started. */
static int npas_start(const npas_job *job) {
  if (job->threads == 1) return 0;
  pthread_mutex_lock(&npas_pool.run);
  while (npas_pool.started < job->threads - 1) {
    int number = npas_pool.started + 1;
    npas_pool.seen[number] = atomic_load(&npas_pool.round);
    if (pthread_create(&npas_pool.threads[number], NULL, npas_thread, (void *)(intptr_t)number)) {
      pthread_mutex_unlock(&npas_pool.run);
      return 1;
    }
    npas_pool.started = number;
  }
  npas_pool.job = *job;
  npas_pool.base = atomic_load(&npas_pool.arrived);
  npas_pool.expected += (unsigned)npas_pool.started;
#ifdef __linux__
  atomic_store_explicit(&npas_pool.cpu[0], sched_getcpu(), memory_order_relaxed);
#endif
  npas_announce();
  return 0;
}

/* Give the pool back, when every thread has taken the job: the next one overwrites it. */
static void npas_finish(const npas_job *job) {
  if (job->threads == 1) return;
  npas_await(&npas_pool.taken, npas_pool.expected);
  pthread_mutex_unlock(&npas_pool.run);
}

/* A child process has none of the threads, and whatever locks its parent held. */
static void npas_forked(void) {
  pthread_mutex_init(&npas_pool.run, NULL);
  pthread_mutex_init(&npas_pool.sleep, NULL);
  pthread_cond_init(&npas_pool.wake, NULL);
  npas_pool.started = 0;
  npas_pool.expected = atomic_load(&npas_pool.taken);
}

__attribute__((constructor)) static void npas_loaded(void) { pthread_atfork(NULL, NULL, npas_forked); }

/* Before the library's code goes away its threads must have left it. */
__attribute__((destructor)) static void npas_unloaded(void) {
  if (!npas_pool.started) return;
  npas_pool.stop = 1;
  npas_announce();
  for (int number = 1; number <= npas_pool.started; number++) pthread_join(npas_pool.threads[number], NULL);
}

"""Tiny hand-written networks with the C ABI of compiled ones: y = factor * x over four numbers, with a known run time and every fault."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from stages.devices.runner import find_cc

COUNT = 4
MANIFEST = {
    "schema": "npas-manifest/1",
    "inputs": [{"name": "x", "shape": [1, COUNT], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": [1, COUNT], "dtype": "float32"}],
    "kernels": [{"layer": "scale", "kernel": "multiply"}, {"layer": "head", "kernel": "copy"}],
}
SOURCE = """
#include <stddef.h>
#include <stdlib.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>
const char *npas_manifest(void) {{ return {manifest}; }}
size_t npas_workspace_bytes(void) {{ return 64; }}
static void spin(double ms) {{
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  do clock_gettime(CLOCK_MONOTONIC, &b); while ((b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) * 1e-6 < ms);
}}
static int calls;
int npas_run(const void *const *inputs, void *const *outputs, void *workspace, int threads) {{
  const float *x = inputs[0];
  float *y = outputs[0];
  calls++;
  if ((size_t)workspace % 64 || (size_t)x % 64 || (size_t)y % 64) return 99;
  {body}
  spin({ms});
  for (int i = 0; i < {count}; i++) y[i] = {factor} * x[i];
  {after}
  return 0;
}}
int npas_profile(const void *const *inputs, void *const *outputs, void *workspace, int threads, double *ms) {{
  ms[0] = ++calls % 2 ? 1.0 : 3.0;
  ms[1] = 0.5;
  return npas_run(inputs, outputs, workspace, threads);
}}
"""


def c_source(factor: float = 2.0, ms: float = 0.0, body: str = "", after: str = "", manifest: dict | None = None) -> str:
    """The C text of one network; ``body`` runs before the sum, ``after`` after it."""
    text = json.dumps(json.dumps(MANIFEST if manifest is None else manifest))
    return SOURCE.format(manifest=text, factor=factor, ms=ms, body=body, after=after, count=COUNT)


def build(folder: Path, name: str, source: str) -> Path:
    """Compile ``source`` into ``folder/name.so``."""
    (folder / f"{name}.c").write_text(source)
    subprocess.run([*find_cc(), "-O1", "-shared", "-fPIC", "-o", str(folder / f"{name}.so"), str(folder / f"{name}.c")], check=True)
    return folder / f"{name}.so"

"""The programs that link: cc or zig for this machine, zig for 64-bit ARM, the NDK for Android libraries. Imports artifacts and errors only.

Zig compiles the C library of a target when it is first asked for it, which takes one to three minutes; the result stays in npas's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.artifacts import cache_dir
from stages.errors import NpasError, UsageError

STATIC = "aarch64-linux-musl"  # what a static executable is linked for: it needs nothing but the kernel, Android's as well
GLIBC = "aarch64-linux-gnu.2.28"  # shared libraries for Linux: Debian 10, Ubuntu 18.10, Raspberry Pi OS and later
ANDROID_API = 24  # Android 7
_NDK_CLANG = "toolchains/llvm/prebuilt/*/bin/clang"
_HINT = "Install a C compiler (cc), or the ziglang package."


def host() -> list[str]:
    """The C compiler that links for this machine: cc, or the one of the ziglang package."""
    found = shutil.which("cc")
    return [found] if found else _zig()


def zig(target: str) -> list[str]:
    """The C compiler of the ziglang package for ``target``, e.g. STATIC."""
    return [*_zig(), "-target", target]


def archiver() -> list[str]:
    """The program that makes static libraries."""
    return [sys.executable, "-m", "ziglang", "ar"]


def ndk() -> list[str] | None:
    """The NDK's C compiler for 64-bit ARM, None when ANDROID_NDK_HOME isn't set. UsageError when it is set and has no compiler."""
    home = os.environ.get("ANDROID_NDK_HOME")
    if not home:
        return None
    found = sorted(Path(home).glob(_NDK_CLANG))
    if not found:
        raise UsageError(
            f"ANDROID_NDK_HOME is {home}, but there is no {_NDK_CLANG}.", "Let it name the NDK's own folder (the one with source.properties), or unset it."
        )
    return [str(found[-1]), f"--target=aarch64-linux-android{ANDROID_API}", "-Wl,-z,max-page-size=16384"]  # Android 15 has pages of 16 KB


def prepare(target: str, say: Callable[[str], None]) -> None:
    """Have zig compile the C library of ``target`` now, if it hasn't yet, and ``say`` why that takes a while."""
    marker = _zig_cache() / f"{target}-{_zig_version()}.ready"
    if marker.exists():
        return
    say(f"compiling zig's C library for {target}, once: one to three minutes")
    with tempfile.TemporaryDirectory(prefix="npas-link-") as folder:
        (Path(folder) / "empty.c").write_text("#include <pthread.h>\n#include <math.h>\nint main(void) { return 0; }\n", encoding="utf-8")
        static = ["-static"] if target == STATIC else []
        run([*zig(target), "-O2", *static, "-pthread", "empty.c", "-lm", "-o", "empty"], Path(folder))
    marker.touch()


def run(command: Sequence[str], folder: Path) -> None:
    """Run a compiler or linker in ``folder``. NpasError with its last words when it fails."""
    places = {"ZIG_GLOBAL_CACHE_DIR": str(_zig_cache()), "ZIG_LOCAL_CACHE_DIR": str(folder / "zig")}  # the second would keep every network for ever
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | places)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        program = " ".join(word for word in command[:4] if not word.startswith("-"))
        raise NpasError(f"The linker '{program}' failed: {lines[-1] if lines else 'no message'}", _HINT)


def _zig() -> list[str]:
    return [sys.executable, "-m", "ziglang", "cc"]


def _zig_cache() -> Path:
    """Where the compiled C libraries stay: $ZIG_GLOBAL_CACHE_DIR as for zig itself, or npas's cache."""
    own = os.environ.get("ZIG_GLOBAL_CACHE_DIR")
    return Path(own) if own else cache_dir("zig")


def _zig_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ziglang")
    except PackageNotFoundError:
        raise NpasError("The package ziglang, which links for other machines, is not installed.", "pip install ziglang") from None

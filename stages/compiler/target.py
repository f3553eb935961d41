"""What the compiler must know of a processor: vector width, registers, the name LLVM has for it. Imports config and errors only."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache

from stages.config import TARGETS
from stages.errors import UsageError

HOST, *CROSS = TARGETS
BASELINE = "generic"  # LLVM's own schedule: its kernels execute fewer instructions and spill less than those for a named processor
_ISSUE = 4  # Cortex-A76: four instructions and two multiply-adds a cycle; Cortex-A55: half of both
# Processors whose order of instructions can be asked for, and the features of theirs that Armv8.0 lacks: code that uses one would stop on an older phone (SIGILL).
_NEWER = ("-lse", "-rdm", "-crc", "-fullfp16", "-dotprod", "-rcpc")
_BEYOND_ARMV8_0 = {"generic": (), "cortex-a53": (), "cortex-a55": _NEWER, "cortex-a76": _NEWER}


@dataclass(frozen=True)
class Reach:
    """What data costs that doesn't stay in the first-level cache, as the cost models see it. The defaults were fitted to Zen 4.

    ``far``: bytes a cycle that arrive in order from main memory, ``streams``, from how many places at a time it is read where that is all that counts (linear layers; measured, Zen 3, VGG-16's 24.8 -> 19.8 ms dense,
    3.4 -> 2.9 at 8.2x), ``early``, whether such layers ask a page ahead where a place's weights are less than a cache line (measured, VGG-16's at 8.2x: Granite Rapids 2.85 -> 2.4 ms, Zen 3 15 % slower), and
    ``hidden``, the share of that time during which the processor computes if it can. ``near``: bytes of a layer's weights that stay in the third
    level, and ``again``, bytes a cycle that come from there, 0 for a cost that doesn't show. ``second``: bytes of scratch memory that stay in the second level. ``asked``: bytes of a layer's weights up to which it
    pays to ask for them a page ahead (measured, Winograd, Zen 4: 3 to 8 % faster below, 5 % slower above); ``evenly``, whether Winograd layers ask, while all panels of tiles use some weights, for as many that follow
    (measured, Zen 3: 512 channels at 14x14 4.2 -> 3.4 ms, at 28x28 12.8 -> 11.1, at 7x7 1.85 -> 1.47); ``group``: bytes of a group's weights of which the second level holds two. ``line``: cycles for each cache line that is written beyond the first level and read back from there.
    ``first``: bytes of a Winograd block's weights of one place that stay in the first level while the inputs of all panels of tiles pass by; ``inputs``:
    bytes of pixels that stay there while a depthwise convolution goes along a row. ``ahead``: how many positions before it multiplies a convolution on planes asks for the pixels of a position, 0 for not at all
    (measured, Zen 3, blocks of 8: 384 to 64 channels at 14x14 73 -> 64 us, 512 channels 3x3 at 28x28 7.4 -> 5.9 ms, at 14x14 1.7 -> 1.4). Other kernels claim lines then (``Target.claims``), and don't ask for weights
    that are read in order. No other processor was measured.
    ``crossing`` and ``apart``: cycles for each vector that a flat walk over planes loads across two lines, and for each that isn't in the first level.
    """

    far: float = 9.0
    streams: int = 1
    early: bool = False
    hidden: float = 0.85
    near: int = 16 << 20
    again: float = 0.0
    second: int = 8 << 20
    asked: int = 16 << 20
    evenly: bool = False
    group: int = 448 << 10
    first: int = 1 << 40
    inputs: int = 1 << 40
    ahead: int = 0
    line: float = 0.0
    crossing: float = 0.0
    apart: float = 0.0


# Every processor with AVX2. Fitted to one Zen 3 core (3.25 GHz, a second level of 512 KB): main memory gives it 23 GB/s, the third level 47.
_AVX2 = Reach(far=7.0, streams=3, again=14.0, second=448 << 10, evenly=True, group=224 << 10, first=8 << 10, inputs=16 << 10, ahead=8)
# Fitted to one Granite Rapids core (3.6 GHz, a second level of 2 MB): main memory and a large part of the third level give it 11 to 20 GB/s.
_XEON = Reach(far=4.0, streams=2, early=True, hidden=0.0, near=12 << 20, again=18.0, second=1 << 20, asked=1 << 40, group=900 << 10, line=3.5, crossing=1.2, apart=0.35)


@dataclass(frozen=True)
class Target:
    """A processor as code generation sees it.

    ``lanes`` are floats per widest vector; ``narrow`` are the vector widths (in floats) that a kernel may choose from, widest first; ``registers`` is how many vector registers there are;
    ``fused_narrow`` says that half-width vectors also reach the peak of multiply-adds (processors that split the widest vectors in two). ``features`` are turned on (+) or off (-) beside those of ``mcpu``.
    ``issue`` is how many instructions begin in a cycle where that may bound a kernel before the two multiply-adds of a cycle do; 0 where it doesn't. ``reach``: what the caches' second level and beyond cost.
    """

    triple: str
    mcpu: str
    isa: str
    lanes: int
    narrow: tuple[int, ...]
    registers: int
    fused_narrow: bool = False
    features: tuple[str, ...] = ()
    issue: int = 0
    reach: Reach = Reach()

    def claims(self, written: int) -> bool:
        """Whether a kernel asks for the cache lines of its ``written`` floats before it writes them: where they exceed the second level, and a store that misses makes those behind it wait.

        Measured, Zen 3: 32 channels of 112x112, depthwise, 202 -> 143 us; 16 to 64 channels of 112x112, blocks of 8, 420 -> 270.
        """
        return self.reach.ahead > 0 and 4 * written > self.reach.second

    def tvm(self) -> dict[str, object]:
        """The target as TVM wants it: a dict, never a string."""
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": self.mcpu, **({"mattr": list(self.features)} if self.features else {})}


def resolve(name: str) -> Target:
    """The target called ``name``: "host" is the processor that runs this; the others may name one to schedule for, as in "android-arm64:cortex-a55". UsageError for any other name."""
    kind, _, mcpu = name.partition(":")
    if kind in CROSS:
        return arm64(mcpu or BASELINE)
    if name != HOST:
        raise UsageError(f"Unknown compilation target '{name}'.", f"Known: {', '.join(TARGETS)}.")
    return _host()


def arm64(mcpu: str) -> Target:
    """Code for every 64-bit ARM processor (Armv8.0 with NEON), instructions ordered for ``mcpu``. UsageError for a processor that isn't known."""
    if mcpu not in _BEYOND_ARMV8_0:
        raise UsageError(f"Unknown 64-bit ARM processor '{mcpu}'.", f"Known: {', '.join(_BEYOND_ARMV8_0)}.")
    return Target("aarch64-unknown-linux-gnu", mcpu, "neon", 4, (4,), 32, features=("+neon", *_BEYOND_ARMV8_0[mcpu]), issue=_ISSUE)


def avx2(mcpu: str) -> Target:
    """Code for x86-64 with AVX2 and FMA, for the processor that LLVM calls ``mcpu``."""
    return Target(_TRIPLE, mcpu, "avx2", 8, (8, 4), 16, reach=_AVX2)


@cache
def _host() -> Target:
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return _x86(_cpu_flags())
    if machine in ("aarch64", "arm64"):
        return arm64(BASELINE)
    raise UsageError(f"npas can't generate code for this machine's architecture '{machine}'.", "Supported: x86-64 with AVX2 or AVX-512, and 64-bit ARM.")


_TRIPLE = "x86_64-unknown-linux-gnu"
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")


def _x86(cpu: dict[str, str]) -> Target:
    flags = set(cpu.get("flags", "").split())
    amd = cpu.get("vendor_id") == "AuthenticAMD"
    if flags.issuperset(_AVX512):
        split = amd and cpu.get("cpu family") == "25"  # Zen 4 runs a 512-bit operation as two halves; Zen 5 (family 26) doesn't
        if not amd and "amx_tile" in flags:  # server processors since Sapphire Rapids
            return Target(_TRIPLE, "sapphirerapids", "avx512", 16, (16, 8, 4), 32, reach=_XEON)
        return Target(_TRIPLE, ("znver4" if split else "znver5") if amd else "skylake-avx512", "avx512", 16, (16, 8, 4), 32, split)
    if flags.issuperset(("avx2", "fma")):
        return avx2("znver3" if amd else "haswell")
    raise UsageError("This processor has neither AVX-512 nor AVX2 with FMA.", "npas compiles for x86-64 with AVX2 or AVX-512, and for 64-bit ARM.")


def _cpu_flags() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        first = file.read().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}

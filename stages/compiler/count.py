"""How many instructions a network for 64-bit ARM executes: a cost without noise where no phone is at hand. Needs the package unicorn (extra "arm64"); imported when counting.

The network's C interface is linked without start-up code and called inside an emulator that adds up the instructions of every block that it runs. A count is no time: processors
differ in how many instructions they do at once, and waiting for memory isn't in it.
"""

from __future__ import annotations

import importlib.util
import struct
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.compiler.cross import NAME, CrossModel, link_runner, prefix
from stages.compiler.random_inputs import random_inputs
from stages.errors import NpasError, UsageError

_PAGE = 0x10000
_DATA, _STACK, _STACK_BYTES, _RETURN = 0x100_0000_0000, 0x200_0000_0000, 1 << 20, 0x300_0000_0000
_VECTOR_UNIT = 3 << 20  # CPACR_EL1.FPEN: vector instructions don't trap
_LOADABLE, _SYMBOLS = 1, 2  # PT_LOAD, SHT_SYMTAB


def available() -> bool:
    """Whether the package unicorn is installed."""
    return importlib.util.find_spec("unicorn") is not None


def instructions(model: CrossModel, inputs: Sequence[np.ndarray] = ()) -> int:
    """Instructions of one whole inference on one thread, always the same number for the same inputs (random ones when none are given). UsageError without unicorn."""
    return sum(_count(model, inputs))


def profile(model: CrossModel, inputs: Sequence[np.ndarray] = ()) -> list[tuple[str, str, int]]:
    """(layer, kernel, instructions) in the order in which the kernels run."""
    kernels, counts = model.manifest["kernels"], _count(model, inputs)[1:]  # the first are the runtime's own
    assert len(kernels) == len(counts)
    return [(k["layer"], k["kernel"], count) for k, count in zip(kernels, counts, strict=True)]


def _count(model: CrossModel, inputs: Sequence[np.ndarray]) -> list[int]:
    """Instructions until the first kernel begins, and from each beginning of a kernel to the next."""
    if not available():
        raise UsageError("Counting instructions takes the package unicorn, which isn't installed.", "pip install 'npas[arm64]'")
    with tempfile.TemporaryDirectory(prefix="npas-count-") as folder:
        path = Path(folder) / "program"
        link_runner({NAME: model}, path, ["-nostartfiles", f"-Wl,-e,{prefix(NAME)}npas_run"])  # not stripped: the kernels' names tell where they begin
        program = path.read_bytes()
    kernels = {address for name, address in _symbols(program) if name in model.parts.objects}
    return _run(program, kernels, model.manifest, inputs or random_inputs([i["shape"] for i in model.manifest["inputs"]]))


def _run(program: bytes, kernels: Collection[int], manifest: dict[str, Any], inputs: Sequence[np.ndarray]) -> list[int]:
    import unicorn
    from unicorn import arm64_const as arm

    machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    for address, content, size in _segments(program):
        begin, end = address // _PAGE * _PAGE, -(-(address + size) // _PAGE) * _PAGE
        machine.mem_map(begin, end - begin)
        machine.mem_write(address, content)
    machine.mem_map(_STACK, _STACK_BYTES)
    machine.mem_map(_RETURN, _PAGE)
    machine.reg_write(arm.UC_ARM64_REG_CPACR_EL1, _VECTOR_UNIT)
    registers = (arm.UC_ARM64_REG_X0, arm.UC_ARM64_REG_X1, arm.UC_ARM64_REG_X2, arm.UC_ARM64_REG_X3)
    for register, value in zip(registers, (*_operands(machine, manifest, inputs), 1), strict=True):
        machine.reg_write(register, value)
    machine.reg_write(arm.UC_ARM64_REG_SP, _STACK + _STACK_BYTES)
    machine.reg_write(arm.UC_ARM64_REG_LR, _RETURN)
    counts = [0]

    def block(_machine: Any, address: int, size: int, _data: Any) -> None:
        if address in kernels:
            counts.append(0)
        counts[-1] += size // 4

    machine.hook_add(unicorn.UC_HOOK_BLOCK, block)
    try:
        machine.emu_start(struct.unpack_from("<Q", program, 24)[0], _RETURN)  # ELF's e_entry
    except unicorn.UcError as error:
        raise NpasError(f"The emulator stopped while counting: {error}.", "Please report this with the network.") from None
    code = machine.reg_read(arm.UC_ARM64_REG_X0)
    if code:
        raise NpasError(f"The compiled network refused to run in the emulator (code {code}).", "Please report this with the network.")
    return counts


def _segments(program: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(address, content, bytes in memory) of what an ELF executable loads."""
    offset, size, count = struct.unpack_from("<Q", program, 32)[0], *struct.unpack_from("<HH", program, 54)
    for k in range(count):
        kind, _, place, address, _, held, whole, _ = struct.unpack_from("<IIQQQQQQ", program, offset + k * size)
        if kind == _LOADABLE:
            yield address, program[place : place + held], whole


def _symbols(program: bytes) -> Iterator[tuple[str, int]]:
    """(name, address) of every symbol of an ELF executable."""
    offset, size, count = struct.unpack_from("<Q", program, 40)[0], *struct.unpack_from("<HH", program, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", program, offset + k * size) for k in range(count)]
    for _, kind, _, _, place, length, link, _, _, _ in sections:
        if kind != _SYMBOLS:
            continue
        names = sections[link][4]
        for at in range(place, place + length, 24):
            name, _, _, _, address, _ = struct.unpack_from("<IBBHQQ", program, at)
            yield program[names + name : program.index(0, names + name)].decode(), address


def _operands(machine: Any, manifest: dict[str, Any], inputs: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Addresses of the table of inputs, the table of outputs and the workspace, which are put into the machine's memory."""
    arrays = [np.ascontiguousarray(x, np.float32).tobytes() for x in inputs]
    arrays += [bytes(4 * int(np.prod(o["shape"]))) for o in manifest["outputs"]]
    arrays.append(bytes(manifest["workspace_bytes"] + 64))
    places, free = [], _DATA + _PAGE
    for content in arrays:
        places.append(free)
        free += -(-len(content) // 64) * 64 + 64
    machine.mem_map(_DATA, -(-(free - _DATA) // _PAGE) * _PAGE)
    for place, content in zip(places, arrays, strict=True):
        machine.mem_write(place, content)
    machine.mem_write(_DATA, struct.pack(f"<{len(places)}Q", *places))
    return _DATA, _DATA + 8 * len(inputs), places[-1]

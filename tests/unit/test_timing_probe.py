"""The identity of a device: deterministic, and read right from recorded /proc/cpuinfo texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from stages.devices import HostDevice
from stages.devices.probe import clusters, fingerprint, parse_cpuinfo

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8
cpu MHz\t\t: 2699.998
flags\t\t: fpu sse4_2 avx avx2 fma avx512f avx512bw avx512dq avx512vl avx512_vnni hypervisor amx_tile

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
"""
ARM = """processor\t: 0
BogoMIPS\t: 38.40
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 4
CPU implementer\t: 0x51
CPU part\t: 0x804
"""


def test_x86():
    found = parse_cpuinfo(X86)
    assert found["soc"] == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz (family 6, model 143, stepping 8)"
    assert found["isa"] == ["sse4_2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "amx_tile"]
    assert found["virtual"] is True


def test_arm():
    assert parse_cpuinfo(ARM) == {"soc": "0x41 0xd05 + 0x51 0x804", "isa": ["asimd", "asimdhp", "asimddp", "fphp"], "virtual": False}
    assert parse_cpuinfo(ARM + "Hardware\t: Qualcomm SM8150\n")["soc"] == "Qualcomm SM8150"


def test_an_empty_cpuinfo_is_no_error():
    assert parse_cpuinfo("") == {"soc": "unknown", "isa": [], "virtual": False}


def test_probe_is_the_same_in_every_process():
    here = HostDevice().probe()
    code = "import json; from stages.devices import HostDevice; print(json.dumps(HostDevice().probe()))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}).stdout
    assert json.loads(there) == here
    assert json.loads(json.dumps(here)) == here


def test_fingerprint_covers_the_identity():
    identity = HostDevice().probe()
    mark = identity.pop("fingerprint")
    assert len(mark) == 64
    assert fingerprint(identity) == mark
    assert fingerprint(identity | {"isa": []}) != mark


def test_every_core_is_in_one_cluster():
    assert sorted(core for group in clusters() for core in group["cores"]) == list(range(os.cpu_count() or 1))

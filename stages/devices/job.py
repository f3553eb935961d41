"""A detached job on a phone: started once, then only looked at, so that neither a lost link nor the end of this process costs a run. Imports artifacts, errors and the connection.

A job is a folder npas-<uuid> in /data/local/tmp (/sdcard forbids execution). Beside the runner and its files it holds

    key         what is measured, written when all files are there; a later npas that measures the same takes the job over instead of starting it again
    owner       which computer started it
    lease       touched at every look: when another computer's job is looked at no more, it is stale
    pid         of job.sh and of the runner, from the moment that both run
    events      the runner's JSON lines
    rc          its exit status, once it has ended
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from stages.devices.adb.connection import Connection
from stages.errors import DeviceLost, DeviceNotFound, NpasError, RunnerCrashed

T = TypeVar("T")
BASE = "/data/local/tmp"
LEASE_SECONDS = 180
_START_SECONDS = 10
# Android's toybox may be old: what a program lacks is done without. The folder must be the job's working directory, for a pid may since belong to another program.
_SCRIPT = """cd {folder} || exit 1
{command} 2> stderr < /dev/null &
echo $$ $! > pid.new
mv pid.new pid
wait $!
echo $? > rc.new
mv rc.new rc
"""
_KILL = """d=$(cd {folder} 2>/dev/null && pwd -P) && for p in $(cat $d/pid 2>/dev/null); do
  [ "$(readlink /proc/$p/cwd)" = "$d" ] && kill -9 $p
done; true"""
# What goes on by itself ignores the hang-up from its first step on: the link may be lost after any of them, and nobody begins the job again. And all of it has left the
# command's terminal: adb waits until nobody holds that, which would last as long as the job where the hang-up is ignored.
_START = """cd {folder} || exit 1
command -v setsid > /dev/null && apart=setsid || apart=
{{ trap '' HUP; mkdir started && exec $apart sh ./job.sh; }} < /dev/null > /dev/null 2>&1 &
i=0
while [ ! -s pid ] && [ $i -lt {tenths} ]; do sleep 0.1; i=$((i+1)); done
[ -s pid ]"""
_LOOK = """cd {folder} && touch lease && {{
  cat rc 2>/dev/null || echo -
  wc -l 2>/dev/null < events || echo 0
  p=$(cat pid); kill -0 ${{p##* }} 2>/dev/null && echo alive || echo gone
}} 2>/dev/null"""
_LIST = """cd {base} && for f in npas-*; do
  [ -f $f/owner ] && echo "$f $(cat $f/owner) $(( $(date +%s) - $(stat -c %Y $f/lease) )) $(cat $f/key || echo -)"
done 2>/dev/null; true"""


@dataclass(frozen=True)
class Look:
    """A job at one moment: its exit status (None while it runs), the lines of its events, and whether the runner lives."""

    rc: int | None
    lines: int
    alive: bool


class Held:
    """A connection whose losses are bridged: what was cut off is asked again after reconnecting, so it must be harmless to do twice."""

    def __init__(self, connection: Connection, say: Callable[[str], None], patience_s: float = 60.0):
        self.connection, self._say, self._patience = connection, say, patience_s

    def shell(self, command: str, timeout_s: float = 10.0) -> tuple[int, str]:
        """(exit status, text) of ``command``. DeviceLost when the phone stays away."""
        found = self.bridged(lambda: self.connection.shell(command, timeout_s))
        return found.rc, found.text

    def line(self, command: str) -> str | None:
        """The first line that ``command`` prints, None when it fails or prints nothing."""
        rc, text = self.shell(f"{command} 2>/dev/null")
        return text.strip().splitlines()[0] if rc == 0 and text.strip() else None

    def push(self, local: Path, remote: str, mode: int = 0o644) -> None:
        """Copy a file there, verified there."""
        self.bridged(lambda: self.connection.push(local, remote, mode=mode))

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from there."""
        self.bridged(lambda: self.connection.pull(remote, local))

    def bridged(self, call: Callable[[], T], tries: int = 5) -> T:
        """``call()``, again after each loss."""
        for left in range(tries - 1, -1, -1):
            try:
                return call()
            except DeviceLost as loss:
                if not left:
                    raise
                self._say(f"{loss.message} Reconnecting; the phone goes on by itself.")
                self.connection.reconnect(self._patience)
        raise AssertionError("unreachable")


class Job:
    """One folder on one phone. ``find`` and ``prepare`` make it, ``start`` what is in it, ``look`` tells how far it is, ``clear`` ends and removes it."""

    LOOK_SECONDS = 10.0  # a phone that hasn't answered by then is taken for lost

    def __init__(self, held: Held, folder: str):
        self.held, self.folder, self.started = held, folder, False

    @classmethod
    def find(cls, held: Held, key: str, base: str = BASE) -> Job | None:
        """The job of this computer that measures ``key``, if one is left; all others that nobody waits for are ended and removed.

        DeviceNotFound when another computer's job runs there. Call it while no other npas of this computer uses the phone.
        """
        mine: Job | None = None
        for folder, owner, found in _ours(held, base):
            job = cls(held, f"{base}/{folder}")
            if owner == this_computer() and found == key and mine is None:
                mine, job.started = job, True
            else:
                job.clear()
        return mine

    @classmethod
    def prepare(cls, held: Held, base: str = BASE) -> Job:
        """A new, empty folder."""
        job = cls(held, f"{base}/npas-{uuid.uuid4().hex[:12]}")
        path = shlex.quote(job.folder)
        rc, text = held.shell(f"mkdir -p {path} && cd {path} && touch lease && echo {shlex.quote(this_computer())} > owner")
        if rc:
            raise DeviceNotFound(f"npas can't write to {base} of {held.connection.name}: {' '.join(text.split())}.", "The shell user must own that folder: restart the phone.")
        return job

    def ready(self, key: str) -> None:
        """All files are there: from now on a later npas may take the job over."""
        self.started = True
        self.held.shell(f"echo {shlex.quote(key)} > {shlex.quote(self.folder)}/key")

    def start(self, command: Sequence[str], work: Path) -> None:
        """Run ``command`` in the folder, detached; returns when it runs. Harmless when it has been started already."""
        script = work / "job.sh"
        script.write_text(_SCRIPT.format(folder=shlex.quote(self.folder), command=shlex.join(command)), encoding="utf-8")
        self.held.push(script, f"{self.folder}/job.sh")
        rc, text = self.held.shell(_START.format(folder=shlex.quote(self.folder), tenths=10 * _START_SECONDS), _START_SECONDS + 10)
        if rc:
            raise RunnerCrashed(f"The job did not start on {self.held.connection.name}: {' '.join(text.split()) or 'its shell said nothing'}.", "Restart the phone, and try again.")

    def look(self) -> Look:
        """How far it is."""
        rc, text = self.held.shell(_LOOK.format(folder=shlex.quote(self.folder)), self.LOOK_SECONDS)
        words = text.split()
        if rc or len(words) != 3:
            raise RunnerCrashed(f"The job's folder on {self.held.connection.name} is gone: {' '.join(words) or 'it said nothing'}.", "Somebody removed it, or the phone was restarted: measure again.")
        return Look(None if words[0] == "-" else int(words[0]), int(words[1]), words[2] == "alive")

    def kill(self) -> None:
        """End what runs in it."""
        self.held.shell(_KILL.format(folder=shlex.quote(self.folder)))

    def give_up(self) -> None:
        """Remove it if the phone answers: nothing runs in it yet."""
        with suppress(NpasError):
            self.held.connection.shell(f"rm -rf {shlex.quote(self.folder)}")

    def clear(self) -> None:
        """End what runs in it and remove it."""
        self.kill()
        self.held.shell(f"rm -rf {shlex.quote(self.folder)}", 60)


def check_free(held: Held, base: str = BASE) -> None:
    """DeviceNotFound while another computer measures there."""
    _ours(held, base)


def _ours(held: Held, base: str) -> list[tuple[str, str, str]]:
    """(folder, owner, key) of the jobs that this computer may end: its own, and those that nobody looks at any more. DeviceNotFound when there is another one."""
    rows = listed(held, base)
    if any(owner != this_computer() and age <= LEASE_SECONDS for _, owner, age, _ in rows):
        raise DeviceNotFound(f"{held.connection.name} is being measured by another computer.", "Wait until it is done; a job that nobody looks at any more is removed after three minutes.")
    return [(folder, owner, key) for folder, owner, _, key in rows]


def listed(held: Held, base: str = BASE) -> list[tuple[str, str, int, str]]:
    """(folder, owner, seconds since somebody looked, key) of every job on the phone."""
    rows = (line.split() for line in held.shell(_LIST.format(base=shlex.quote(base)))[1].splitlines())
    return [(row[0], row[1], int(row[2]), row[3]) for row in rows if len(row) == 4 and row[2].lstrip("-").isdigit()]


@cache
def this_computer() -> str:
    """A name for this computer, the same until it is installed anew."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            if text := Path(path).read_text(encoding="utf-8").strip():
                return text
        except OSError:
            continue
    return f"{uuid.getnode():012x}"

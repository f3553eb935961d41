"""What a device runs: a library of its own, or one of the networks inside a static executable. Imports errors only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from stages.errors import ArtifactError


@dataclass(frozen=True)
class Linked:
    """The network ``name`` inside ``program``, the executable that compiler.cross.write_runner makes: a phone's static executable can't load libraries."""

    program: Path
    name: str

    def __str__(self) -> str:
        return f"{self.program} ({self.name})"


Model = Path | Linked


def existing(path: Path | str) -> Path:
    """The absolute path of a compiled network that exists; ArtifactError when it doesn't."""
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist.", "Make it with 'npas compile', or the whole pipeline with 'dvc repro'.")
    return Path(os.path.abspath(path))

"""The one place that imports torchvision, after checking that it belongs to the installed torch. Imports errors only of npas.

``from stages.tasks.vision import torchvision``. A CPU build of torch can't load the C++ extension of a torchvision built for CUDA, and then ``import torchvision`` itself fails,
because it registers shape rules for ``torchvision::nms`` which that extension would have defined. Nothing that npas uses needs the operator, so its name is declared here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from stages.errors import UsageError

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # the declarations live as long as this object


def check_versions() -> None:
    """UsageError with the pip command when torchvision is missing or was released for another torch."""
    try:
        requires = [Requirement(text) for text in importlib.metadata.requires("torchvision") or ()]
    except importlib.metadata.PackageNotFoundError:
        raise UsageError("torchvision is not installed.", "Run 'pip install npas' again, or 'pip install torchvision'.") from None
    installed = Version(torch.__version__)
    for need in requires:
        if need.name == "torch" and need.marker is None and not need.specifier.contains(Version(installed.public), prereleases=True):
            vision = importlib.metadata.version("torchvision")
            raise UsageError(
                f"torchvision {vision} needs torch{need.specifier}, but torch {installed} is installed.",
                f"Run: pip install 'torchvision=={vision}' 'torch{need.specifier}'",
            )


def _load_extension() -> None:
    """Load torchvision's C++ operators if this torch can; what it defines must not be declared a second time."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).glob("_C*.so"):
            try:
                torch.ops.load_library(str(path))
            except OSError:
                return  # built for CUDA: the operators are declared instead


def _declare_missing() -> None:
    global _library
    missing = [schema for name, schema in SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if missing:
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in missing:
            _library.define(schema)


def import_torchvision() -> ModuleType:
    """torchvision, checked and importable; UsageError when the pair of versions is wrong."""
    check_versions()
    _load_extension()
    _declare_missing()
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"torchvision can't be imported with torch {torch.__version__}: {error}.", "Run: pip install --force-reinstall torch torchvision"
        ) from error
    return torchvision


torchvision = import_torchvision()

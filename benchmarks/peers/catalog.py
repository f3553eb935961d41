"""The one table of contestants, and the one of environments: what is timed, where it runs, and which releases of what are installed for it."""

from __future__ import annotations

import dataclasses

PYTHON = "3.11"  # npas's own


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment. ``alone`` are packages installed without what they depend on; ``python`` is a minor version, which must be on this machine."""

    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()
    python: str = PYTHON


@dataclasses.dataclass(frozen=True)
class Engine:
    """A contestant. ``adapter`` is the module in peers/adapters, ``environment`` a key of ENVIRONMENTS ("" is the one that runs npas).

    ``converts``: the adapter has a ``convert``, whose result is kept unless ``fresh`` (npas itself, which changes from run to run). ``pruned``: runs the network pruned at its rate.
    """

    name: str
    title: str
    adapter: str
    environment: str
    converts: bool = False
    fresh: bool = False
    pruned: bool = False

    @property
    def is_peer(self) -> bool:
        """Not npas."""
        return self.adapter != "npas"


ENVIRONMENTS = {
    # These agree with each other. pnnx's Python half wants torch; only its program is used.
    "native": Environment(("numpy==2.4.6", "onnxruntime==1.31.1", "openvino==2026.4.1", "ncnn==1.0.20261020", "MNN==3.6.1"), alone=("pnnx==20261020",)),
    # Both load the .pt2 that npas's torch saved, so torch is the same release.
    "litert": Environment(("litert-torch==0.10.0", "ai-edge-litert==2.3.0", "torch==2.13.0")),
    "executorch": Environment(("executorch==1.5.1", "torch==2.13.0")),
    # The last release with an engine in it has wheels up to Python 3.11, but wants numpy < 2 and an onnx whose last wheels are for 3.11.
    "deepsparse": Environment(("deepsparse==1.8.0", "protobuf<5"), python="3.10"),
}

ENGINES = (
    Engine("onnxruntime", "ONNX Runtime", "onnxruntime", "native"),
    Engine("openvino", "OpenVINO", "openvino", "native"),
    Engine("litert", "LiteRT (XNNPACK)", "litert", "litert", converts=True),
    Engine("ncnn", "ncnn", "ncnn", "native", converts=True),
    Engine("mnn", "MNN", "mnn", "native", converts=True),
    Engine("executorch", "ExecuTorch (XNNPACK)", "executorch", "executorch", converts=True),
    Engine("deepsparse", "DeepSparse", "deepsparse", "deepsparse", converts=True),
    Engine("torch-compile", "torch.compile (Inductor, freezing)", "torch_compile", ""),
    Engine("torch", "PyTorch eager, best layout", "torch_eager", ""),
    Engine("npas", "npas, dense", "npas", "", converts=True, fresh=True),
    Engine("npas-pruned", "npas, pruned", "npas", "", converts=True, fresh=True, pruned=True),
)

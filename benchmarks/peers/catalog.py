"""The one table of contestants, and the one of environments: what is timed, where it runs, and which releases of what are installed for it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment. ``alone`` are packages installed without what they depend on."""

    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()


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
    # Makes the network.onnx from which most engines start; npas itself doesn't depend on onnx. torch is the release that saved the .pt2.
    "onnx": Environment(("torch==2.13.0", "numpy==2.4.6", "onnx==1.23.2", "onnxscript==0.7.2")),
    # These agree with each other. pnnx's Python half wants torch; only its program is used.
    "native": Environment(("numpy==2.4.6", "onnxruntime==1.31.1", "openvino==2026.4.1", "ncnn==1.0.20261020", "MNN==3.6.1"), alone=("pnnx==20261020",)),
    "litert": Environment(("litert-torch==0.10.0", "ai-edge-litert==2.3.0", "torch==2.13.0")),
    "executorch": Environment(("executorch==1.5.1", "torch==2.13.0")),
    # The last release with an engine in it wants an onnx of its time.
    "deepsparse": Environment(("deepsparse==1.8.0",)),
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

"""The compiler: a network and its scheme become one shared library with a plain C ABI. Public: compile_model, load_model, CompiledModel, tune."""

from stages.compiler.model import CompiledModel, load_model

__all__ = ["CompiledModel", "compile_model", "load_model", "tune"]


def __getattr__(name: str) -> object:
    if name == "compile_model":  # torch is imported only by those who compile
        from stages.compiler.api import compile_model

        return compile_model
    if name == "tune":
        from stages.compiler.tuning.networks import tune

        return tune
    raise AttributeError(name)

"""One engine a file: ``load(job) -> Session`` and, where the engine has a format of its own, ``convert(job)`` before it. Both run in the engine's environment."""

"""The parts of benchmarks/engines.py: other people's inference engines beside npas, each in its own environment and process."""

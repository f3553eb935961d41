"""Real images and pretrained networks for the benchmarks, read from the folder $NPAS_DATA; never part of the repository.

Usable in params.yaml: ``task.data: benchmarks.shared_data.cifar10:data`` with ``task.model: benchmarks.shared_data.networks:resnet20``.
"""

"""The stages of NPAS, one file each; read them in the order of the pipeline: probe, pretrain, replace_ops, search_scheme, search_pruner, compile, bench."""

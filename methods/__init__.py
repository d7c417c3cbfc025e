"""The methods: one file each. The table is literal, so that a name costs no import."""

if __name__ == "methods":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench.methods, not methods: the folder is only where that package's files lie")

METHODS: dict[str, str] = {
    "dgm": "cilbench.methods.dgm.method:DGM",
    "memo": "cilbench.methods.memo:MEMO",
    "icarl": "cilbench.methods.icarl:ICaRL",
    "der": "cilbench.methods.der:DER",
    "foster": "cilbench.methods.foster:FOSTER",
    "replay": "cilbench.methods.replay:Replay",
    "finetune": "cilbench.methods.finetune:Finetune",
    "joint": "cilbench.methods.joint:Joint",
}

COMPRESSIONS: dict[str, str] = {
    "cim": "cilbench.methods.cim.method:CIM",
}

# A short name → what it is short for, as it could be typed.
ALIASES: dict[str, str] = {
    "cim": "foster+cim",
    "dgmw": "dgm",
    "dgma": "dgm --set dgm.variant=dgma --set dgm.s_max=1e5 --set dgm.sparsity=0.01",  # the authors' cfg_mnist_dgma.yml
    "dgm+exemplars": "dgm --set dgm.exemplars=true",
    "dgm+validation": "dgm --set dgm.validation=0.1",  # the epoch is chosen as the authors choose it
}

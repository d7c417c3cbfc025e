"""The methods: one file each. The table is literal, so that a name costs no import."""

if __name__ == "methods":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench.methods, not methods: the folder is only where that package's files lie")

METHODS: dict[str, str] = {
    "dgm": "cilbench.methods.dgm:DGM",
    "memo": "cilbench.methods.memo:MEMO",
    "icarl": "cilbench.methods.icarl:ICaRL",
    "der": "cilbench.methods.der:DER",
    "foster": "cilbench.methods.foster:FOSTER",
    "replay": "cilbench.methods.replay:Replay",
}

COMPRESSIONS: dict[str, str] = {
    "cim": "cilbench.methods.cim:CIM",
}

ALIASES: dict[str, str] = {
    "cim": "foster+cim",
}

"""The methods: one file each. The table is literal, so that a name costs no import."""

if __name__ == "methods":  # imported from the repository root: a second copy beside the installed package
    raise ImportError("import cilbench.methods, not methods: the folder is only where that package's files lie")

# What is not as published whatever the method; `cilbench methods NAME` says it below the method's own.
DEPARTURES = (
    "Photographs are stored at the data set's size, and random crops are taken from that, not from the original file.",
    "On ImageNet every protocol has the survey's 7×7 stem; PyCIL's current one on Base-50 is 3×3 without a stride.",
    "--precision auto computes in bf16 where that was measured to be faster here; published runs are in float32.",
    "AutoAugment, where it is on, is torchvision's: it shears and turns bilinearly, the authors' code bicubically.",
    "Which classes ImageNet-50 has was not published; ImageNet-100's are checked against the list that was.",
)

METHODS: dict[str, str] = {
    "dgm": "cilbench.methods.dgm.method:DGM",
    "memo": "cilbench.methods.memo:MEMO",
    "icarl": "cilbench.methods.icarl:ICaRL",
    "der": "cilbench.methods.der:DER",
    "der+prune": "cilbench.methods.der_prune:PrunedDER",
    "grace": "cilbench.methods.grace:GRACE",
    "foster": "cilbench.methods.foster:FOSTER",
    "wa": "cilbench.methods.wa:WA",
    "bic": "cilbench.methods.bic:BiC",
    "gem": "cilbench.methods.gem:GEM",
    "eeil": "cilbench.methods.eeil:EEIL",
    "lucir": "cilbench.methods.lucir:LUCIR",
    "podnet": "cilbench.methods.podnet:PODNet",
    "coil": "cilbench.methods.coil:COIL",
    "lowfi": "cilbench.methods.lowfi:LowFi",
    "lwf": "cilbench.methods.lwf:LwF",
    "ewc": "cilbench.methods.ewc:EWC",
    "feature-replay": "cilbench.methods.feature_replay:FeatureReplay",
    "fetril": "cilbench.methods.fetril:FeTrIL",
    "pass": "cilbench.methods.pass_:PASS",
    "abd": "cilbench.methods.abd:ABD",
    "dfkd": "cilbench.methods.dfkd:DFKD",
    "dual-teacher": "cilbench.methods.dual_teacher:DualTeacher",
    "simplecil": "cilbench.methods.simplecil:SimpleCIL",
    "ranpac": "cilbench.methods.ranpac:RanPAC",
    "fecam": "cilbench.methods.fecam:FeCAM",
    "acil": "cilbench.methods.acil:ACIL",
    "ds-al": "cilbench.methods.ds_al:DSAL",
    "dgr": "cilbench.methods.dgr:DGR",
    "mergan": "cilbench.methods.mergan:MeRGAN",
    "ewc-m": "cilbench.methods.ewc_m:EWCM",
    "replay": "cilbench.methods.replay:Replay",
    "finetune": "cilbench.methods.finetune:Finetune",
    "joint": "cilbench.methods.joint:Joint",
}

COMPRESSIONS: dict[str, str] = {
    "cim": "cilbench.methods.cim.method:CIM",
    "mrdc": "cilbench.methods.mrdc:MRDC",
}

# A short name → what it is short for, as it could be typed.
ALIASES: dict[str, str] = {
    "cim": "foster+cim",
    "mrdc": "lucir+mrdc",
    "dgmw": "dgm",
    "dgma": "dgm --set dgm.variant=dgma --set dgm.s_max=1e5 --set dgm.sparsity=0.01",  # the authors' cfg_mnist_dgma.yml
    "mergan+joint": "mergan --set mergan.variant=joint",
    "dgm+exemplars": "dgm --set dgm.exemplars=true",
    "dgm+validation": "dgm --set dgm.validation=0.1",  # the epoch is chosen as the authors choose it
}

"""What the reference's learners are called, and their settings: exps/*.json, but for lengths and learning rates."""

from typing import Any

import torch

CLASSES = {
    "finetune": "finetune.Finetune",
    "lwf": "lwf.LwF",
    "ewc": "ewc.EWC",
    "replay": "replay.Replay",
    "icarl": "icarl.iCaRL",
    "gem": "gem.GEM",
    "wa": "wa.WA",
    "bic": "bic.BiC",
    "podnet": "podnet.PODNet",
    "coil": "coil.COIL",
    "der": "der.DER",
    "memo": "memo.MEMO",
    "foster": "foster.FOSTER",
    "pass": "pa2s.PASS",
    "fetril": "fetril.FeTrIL",
    "acil": "acil.ACIL",
    "ds-al": "dsal.DSAL",
}
COSINE = {"podnet", "coil"}  # on a ResNet-32 of their own
ANALYTIC = {"acil", "ds-al"}
INC, BATCH = 5, 25  # classes a task, images a batch
WIDTH = 256  # of the random expansion of the analytic ones; 8,192 there
SETTINGS: dict[str, dict[str, Any]] = {
    "memo": {
        "convnet_type": "memo_resnet32",
        "train_base": True,
        "train_adaptive": False,
        "skip": False,
        "scheduler": "steplr",
        "init_weight_decay": 5e-4,
        "init_lr_decay": 0.1,
        "init_milestones": [60, 120, 170],
        "milestones": [80, 120, 150],
        "batch_size": 128,
        "weight_decay": 2e-4,
        "lrate_decay": 0.1,
        "alpha_aux": 1.0,
        "t_max": None,
    },
    "coil": {"sinkhorn": 0.464, "calibration_term": 1.5, "norm_term": 3.0, "reg_term": 1e-3},
    "foster": {
        "beta1": 0.96,
        "beta2": 0.97,
        "oofc": "ft",
        "is_teacher_wa": False,
        "is_student_wa": False,
        "lambda_okd": 1,
        "wa_value": 1,
        "init_weight_decay": 5e-4,
        "batch_size": 128,
        "weight_decay": 5e-4,
        "num_workers": 0,
        "T": 2,
    },
    "pass": {
        "lambda_fkd": 10,
        "lambda_proto": 10,
        "temp": 0.1,
        "batch_size": BATCH,  # as many prototypes
        "weight_decay": 2e-4,
        "step_size": 45,
        "gamma": 0.1,
        "num_workers": 0,
        "model_name": "pass",
        "init_cls": INC,
        "increment": INC,
    },
    "fetril": {"init_weight_decay": 5e-4, "weight_decay": 5e-4, "batch_size": 128, "num_workers": 0},
}


def settings(method: str, exemplars: int, epochs: int, lr: float) -> dict[str, Any]:
    """Every phase as long and as fast as asked."""
    lengths = ("init_epoch", "init_epochs", "epochs", "boosting_epochs", "compression_epochs", "ft_epochs")
    rates = ("init_lr", "lrate", "lr", "ft_lrate")
    network = "cosine_resnet32" if method in COSINE else "resnet32"
    every = {"memory_size": exemplars, "device": [torch.device("cpu")], "convnet_type": network, "dataset": "cifar100"}
    own = _analytic(method, epochs, lr) if method in ANALYTIC else SETTINGS.get(method, {})
    return {**every, **own, **dict.fromkeys(lengths, epochs), **dict.fromkeys(rates, lr)}


def _analytic(method: str, epochs: int, lr: float) -> dict[str, Any]:
    steps = {"type": "MultiStep", "milestones": [120, 140], "decay": 0.1, "init_epochs": epochs, "init_lr": lr}
    ridge = {"buffer_size": WIDTH, "gamma": 0.1, "gamma_comp": 0.1, "compensation_ratio": 0.6}
    own = {"scheduler": steps, "init_weight_decay": 5e-4, **ridge}
    run = {"model_name": method, "init_cls": INC, "seed": 1, "num_workers": 0}
    # Whole tasks at once, and never an evaluation of the training images, which would use up the recorded batches.
    return {"configurations": {"cifar100": own}, "IL_batch_size": 4096, "train_eval_freq": 10**6, **run}

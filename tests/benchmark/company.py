"""One rank of a run on toy images: python company.py FOLDER SECONDS METHOD… with torchrun's variables set.

Rank 0 does a run of every method and prints how each ended, and how often it added something up with the others.
SECONDS: every step waits so long, so that a test can come in between. OWN_STATISTICS in the environment: a fault.
"""

# ruff: noqa: T201

import json
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch  # noqa: E402
from toy import CPU, OVERRIDES, Silent, toy_dataset, toy_spec  # noqa: E402

from cilbench.methods import dfkd, inversion  # noqa: E402
from cilbench.methods.dgm.steps import Adversaries  # noqa: E402
from cilbench.methods.generative.adversaries import AdversarialStep  # noqa: E402
from cilbench.methods.networks import convolved  # noqa: E402
from cilbench.methods.registry import resolve  # noqa: E402
from cilbench.methods.training import loop  # noqa: E402
from cilbench.methods.training.checkpoint import Interrupted  # noqa: E402
from cilbench.methods.training.ranks import Ranks  # noqa: E402
from cilbench.options import HowToRun  # noqa: E402
from cilbench.processes import stoppable  # noqa: E402
from cilbench.protocol import ranks as protocol  # noqa: E402
from cilbench.protocol.context import RunContext  # noqa: E402
from cilbench.protocol.run import execute  # noqa: E402
from cilbench.records.folder import RunFolder  # noqa: E402

TOY = toy_dataset()
# Three or four epochs. At 0.1 the last bits of a step decide what MEMO learns in ten, on one rank too.
# So do the steps of an inversion, which turn a classifier's last bits into images of their own.
EPOCHS, SMALL_STEPS = "0.02", {"lr": 0.01, "dfkd.image_lr": 1e-3}
SMALL_STEPS |= {"abd.inversion_lr": 1e-6, "dual-teacher.inversion_lr": 1e-6}
# At 1e-3 DGM's masks σ(s·e) are so far closed or open that the last bits decide what is left of their gradient.
SMALL_STEPS |= {"dgm.lr": 3e-5, "dgr.lr": 1e-3, "mergan.lr": 1e-3, "ewc-m.lr": 1e-3}


def spec_of(name):
    method = resolve(name, EPOCHS, OVERRIDES | SMALL_STEPS, {})
    return replace(toy_spec(name, TOY, 48_000), method=method)


def main(out: str, seconds: str, *names: str) -> None:
    torch.set_num_threads(1)
    inversion.STEPS_AN_EPOCH = dfkd.STEPS_AN_EPOCH = 8  # in place of 100
    specs, sums = [spec_of(name) for name in names], Counter()
    plain = Ranks.summed

    def summed(self, tensor):
        sums[current] += 1
        return plain(self, tensor)

    def slow(step):
        def waited(self, *given):
            time.sleep(float(seconds))
            step(self, *given)

        return waited

    for kind in (loop._Step, Adversaries, AdversarialStep):
        kind.__call__ = slow(kind.__call__)
    Ranks.summed, protocol.load = summed, lambda *where: TOY
    if "OWN_STATISTICS" in os.environ:
        convolved.batch_norm = lambda x, norm: None
    current = ""
    with protocol.joined(specs, HowToRun()) as ranks, stoppable() as stop:
        if ranks is not None and ranks.rank:
            protocol.follow(ranks, None, CPU)
            return
        reporter = Silent()
        reporter.stopping = stop
        for current, spec in zip(names, specs, strict=True):
            folder = RunFolder(Path(out), spec.id)
            try:
                ended = execute(RunContext(spec, spec.plan(), TOY, folder, CPU, reporter, "all", ranks=ranks))
            except Interrupted as interrupted:
                print(json.dumps([current, type(interrupted).__name__, "", 0]), flush=True)
                break
            print(json.dumps([current, ended.status, ended.reason, sums[current]]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

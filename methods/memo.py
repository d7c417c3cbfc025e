"""MEMO: Memory-efficient Expandable MOdel, "A Model or 603 Exemplars" (Zhou 2023, arXiv 2205.13218).

Keeps      the general layers once (stem and all stages but the last), one specialised last stage per task, a linear
           head over all their features, herded exemplars. The auxiliary head is thrown away.
Base-0     the general layers go on learning in later tasks; after a large first task (Base-50) they stay as they are
           (the authors' scripts: `train_base` true on Base-0, absent on Base-50).
Latents    `memo+latent[:fp16|int8]` keeps what the general layers make of an image, where they stay as they are (a
           large first task, or --set memo.train_general=no). On 32×32 images that is more than the image (ResNet-32:
           8,192 numbers for 3,072 bytes), on ImageNet less (ResNet-18: 50,176 for 150,528).
Schedule   step decay at 80/120/150 as in PyCIL. `--recipe survey` is that of the survey's scripts: a cosine over the
           200 epochs of the first task and the 170 of later ones, 200 on ImageNet-1000.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from cilbench.budgets.codecs import Codec, Latent, Shape, shape_of
from cilbench.budgets.planning import Budget, DoesNotFit
from cilbench.budgets.shapes import shapes_alone
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task
from cilbench.methods.der import DER
from cilbench.methods.networks.incremental import freeze
from cilbench.methods.rehearsal.base import NetworkGrowth
from cilbench.methods.rehearsal.latents import latent_batches
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.training.config import Count, Schedule
from cilbench.methods.training.loop import Loss
from cilbench.methods.training.losses import expansion_loss_of


class MEMO(DER):
    """One specialised stage a task on top of shared general layers."""

    @dataclass(frozen=True)
    class Config(DER.Config):
        """Milestones and the auxiliary loss are DER's: PyCIL models/memo.py has the same."""

        # the survey's scripts/benchmark/*_memo.sh: --scheduler cosine --t_max 170
        recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"survey": {"first_cosine": True, "cosine": True}}
        # auto: later tasks train the general layers on Base-0 only
        train_general: Literal["auto", "yes", "no"] = "auto"
        # the stage from which on layers are a task's own (the paper's §4 asks which); none: the last one alone
        specialise_from: Count | None = None
        added: ClassVar[tuple[str, ...]] = (*DER.Config.added, "specialise_from")

    growth = NetworkGrowth(expanding=True, share_general=True)
    card = MethodCard(
        key="memo",
        name="MEMO",
        title="A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning",
        arxiv="2205.13218",
        bibtex=cite("zhou2023memo"),
        heads=("head", "nme"),
        rehearsal=True,
        latents=True,
        freezes_branches=True,
    )
    config: Config

    @classmethod
    def growth_of(cls, config: Config) -> NetworkGrowth:
        return replace(cls.growth, specialise_from=config.specialise_from or 0)

    @classmethod
    def stored_shape(cls, config: Config, scenario: Scenario, backbone: str, codec: Codec) -> Shape:
        """Latents have the shape of the maps between general and specialised layers."""
        if not isinstance(codec, Latent):
            return scenario.image_shape
        meta = torch.device("meta")
        with shapes_alone():
            net = cls.growth_of(config).net(scenario, backbone, meta, head_bias=True)
            return shape_of(net.general_maps(torch.empty(1, *scenario.image_shape)))

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        """Raises BudgetTooSmall, DoesNotFit for latents of general layers that go on learning."""
        if compression and isinstance(compression.codec, Latent) and general_learns(config, scenario):
            raise DoesNotFit(
                "its general layers go on learning after the first task; add --base N for a large first"
                " task, or --set memo.train_general=no"
            )
        return super().plan(budget, scenario, config, compression)

    def learn(self, task: Task, context: Context) -> None:
        """As DER, whose branches are here the last stages."""
        if self.net.seen and not general_learns(self.config, self.scenario):
            freeze(self.net.shared)
        super().learn(task, context)

    def training(
        self, task: Task, known: int, auxiliary_head: nn.Linear, schedule: Schedule, context: Context
    ) -> tuple[Loss, Schedule, Context]:
        latents = latent_batches(self.memory, len(task.labels), self.device)
        if latents is None:
            return super().training(task, known, auxiliary_head, schedule, context)
        of_features = partial(expansion_loss_of, self.net, auxiliary_head, known, self.config.auxiliary)
        loss = latents.loss(of_features, self.net, schedule, context.generator)
        return loss, latents.schedule(schedule), latents.context(context)


def general_learns(config: MEMO.Config, scenario: Scenario) -> bool:
    """Do the general layers go on learning after the first task?"""
    return scenario.base == 0 if config.train_general == "auto" else config.train_general == "yes"

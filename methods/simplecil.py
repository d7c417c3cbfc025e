"""SimpleCIL: the class means of a frozen network are its classifier (Zhou 2024, arXiv 2303.07338).

Keeps      one frozen backbone, a row of features a class; no image. Rows are a classifier's, charged as one (`head`);
           beside a backbone that is not charged (`--weights-cost free`) they are charged under `published` too.
Learns     with --weights nothing. Row k is the mean feature of class k, w_k = Σ_{y_i = k} f(x_i) / n_k;
           scores are cosines, s_k(x) = cos(w_k, f(x)). Rows of old classes never change.
Deviations images stay at the data set's size and networks are convolutional, the paper's are ViTs on 224 pixels.
           Without --weights the first task trains the backbone, which is the paper's idea on none of its networks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.planning import Budget
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task
from cilbench.methods.rehearsal.closed_form import ClosedForm, plan_closed_form
from cilbench.methods.rehearsal.memory import Compression
from cilbench.methods.rehearsal.prototypes import feature_means
from cilbench.methods.training.config import FirstTaskConfig
from cilbench.methods.training.numerics import full_precision


class SimpleCIL(ClosedForm):
    """Predicts by the cosine to class means."""

    @dataclass(frozen=True)
    class Config(FirstTaskConfig):
        """Nothing of its own: the method has no hyper-parameter."""

    card = MethodCard(
        key="simplecil",
        name="SimpleCIL",
        title="Revisiting Class-Incremental Learning with Pre-Trained Models: "
        "Generalizability and Adaptivity are All You Need",
        arxiv="2303.07338",
        bibtex=cite("zhou2024simplecil"),
        heads=("head",),
        rehearsal=False,
        port="convolutional networks on images of the data set's size; without --weights the first task trains one",
        frozen=True,
    )

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config, compression: Compression | None = None) -> Plan:
        return plan_closed_form(cls.card.key, budget, scenario, lambda seen, features: {})

    def learn(self, task: Task, context: Context) -> None:
        features_ND = self.task_features(task, context)
        new = self.scenario.new(task.index)
        self.add_rows(feature_means(features_ND, task.labels - new.start, len(new)))

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        features_BD = self.features(images)
        with full_precision(self.device), torch.no_grad():
            return {"head": F.normalize(features_BD, dim=1) @ F.normalize(self.net.classifier.weight, dim=1).T}

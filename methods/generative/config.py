"""Settings that the methods on DGM's networks without its masks share."""

from dataclasses import dataclass

from cilbench.methods.training.config import Count, Positive, Rate, Schedule, Weight, in_epochs


@dataclass(frozen=True)
class GenerativeConfig:
    """The defaults are those of DGM's authors for MNIST: these methods are baselines on DGM's networks.

    "cfg" is DGM's cfg_mnist_dgmw.yml (github.com/SAP-archive/machine-learning-dgm), "ours" what no source says.
    """

    width: Count | None = None  # g; None: as the budget allows. cfg: 6
    min_width: Count = 4  # ours, as dgm's: the plan narrows the solver before the generator gets narrower than this
    d: Count = 32  # the first width of solver and critic at most. cfg: 32
    z_dim: Count = 128  # cfg: nz; where there is a class, its one-hot code takes the leading entries
    epochs: Count = in_epochs(101)  # of the generator. cfg: niter
    batch_size: Count = 64  # cfg
    lr: Positive = 2e-3  # of generator and critic, Adam's. cfg
    beta1: Rate = 0.5  # Adam's. cfg
    gradient_penalty: Weight = 1.0  # cfg; WGAN-GP (arXiv 1704.00028) has 10
    critic_steps: Count = 1  # a generator step. DGM's approaches/DGMw.py; WGAN-GP has 5
    solver_epochs: Count = in_epochs(20)  # ours
    solver_lr: Positive = 1e-3  # ours: Adam's default
    max_steps: Count | None = None  # at most so many batches an epoch; only the smoke recipe sets it

    @property
    def solver_schedule(self) -> Schedule:
        return Schedule(
            epochs=self.solver_epochs,
            milestones=(),
            weight_decay=0.0,
            lr=self.solver_lr,
            momentum=0.0,
            lr_decay=1.0,
            batch_size=self.batch_size,
            max_steps=self.max_steps,
            optimizer="adam",
        )

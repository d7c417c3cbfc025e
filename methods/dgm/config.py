"""DGM's settings."""

from dataclasses import dataclass

from cilbench.methods.dgm.generator import Variant
from cilbench.methods.training.config import Count, Positive, Rate, Share, Weight, in_epochs


@dataclass(frozen=True)
class DGMConfig:
    """The defaults are the authors' for ImageNet-50; cards of data sets have those for MNIST and SVHN.

    "cfg" is their cfg/*.yml (github.com/SAP-archive/machine-learning-dgm), "ours" what they do not say.
    """

    variant: Variant = "dgmw"  # a mask on every weight (dgmw) or every output unit (dgma), §3.2
    width: Count | None = None  # g; None: as the budget allows. cfg: ImageNet-50 64, MNIST and SVHN 6, MNIST's dgma 20
    min_width: Count = 4  # ours: the plan narrows the discriminator before the generator gets narrower than this
    residual_side: Count = 64  # ours: images from this side on have the networks for ImageNet where they fit
    planned_growth: Rate = 0.25  # ours, measured: of a layer's first size, what a task reserves anew
    d: Count = 32  # the discriminator's first width at most (see planning.py). cfg: MNIST and SVHN 32
    z_dim: Count = 128  # cfg: nz; the one-hot class takes the leading entries
    epochs: Count = in_epochs(101)  # cfg: niter 101, SVHN 151
    batch_size: Count = 70  # cfg: ImageNet-50 70, MNIST and SVHN 64
    lr: Positive = 2e-4  # cfg: ImageNet-50 2e-4, SVHN 5e-4, MNIST 2e-3
    beta1: Rate = 0.5  # Adam's; cfg
    s_max: Positive = 1e4  # cfg: dgmw 1e4, dgma 1e5
    sparsity: Weight = 1e-3  # λ. cfg: ImageNet-50 and SVHN 1e-3, MNIST 0.08, MNIST's dgma 0.01
    gradient_penalty: Weight = 0.6  # cfg: ImageNet-50 0.6, MNIST and SVHN 1; WGAN-GP itself has 10
    critic_steps: Count = 1  # a generator step; approaches/DGMw.py
    generator_class_weight: Weight | None = None  # None: 1 where a task has several classes, else 0. cfg: aux_G
    generator_clip: Positive = 1e4  # norm of the generator's gradient at most, embeddings included; approaches/DGMw.py
    protect_closed_inputs: bool = True  # dgma, ours: see method.py; False is theirs
    exemplars: bool = False  # ours: real images for part of the budget
    networks_share: Share = 0.5  # ours: of the budget, for the networks where exemplars are kept
    validation: Rate = 0.0  # theirs, see validation.py: share of a class's images. MNIST 0.15, SVHN and CIFAR-10 0.1
    max_steps: Count | None = None  # at most so many batches an epoch; only the smoke recipe sets it

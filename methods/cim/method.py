"""CIM: class-incremental exemplar compression by learned masks (Luo 2023, CVPR, arXiv 2303.14042).

A compression on top of a method: `icarl+cim`, `der+cim`. Of an exemplar the box round the pixels that tell its class
stays as it is, of the rest every second pixel of every second row (`Box`): b + (1 − b)/4 of an image, b its share.

Mask model  the network with its own weights θ and, in place of every ReLU, a learnable rational function φ. A new
            branch starts with a copy of the previous branch's; those of what is frozen are frozen.
Box         class activation map (CAM) of the mask model → min-max → image size → thresholded at τ → tightest box.
Bilevel     Lower level: the method's own steps on θ, in `fit`. Upper level, after every epoch: φ moves such that one
            step of θ on the method's whole loss, over images whose background is compressed, lowers the cross-entropy
            on held-out images. Both batches are of new and old classes, old ones as they are stored. Heads do not step.
Herding     sees images as they would be stored; the head has no bias; both as in the authors' code.
On DER      as the authors' models/der.py has it: no sparsity, a virtual step with θ's own learning rate, no clipping.
Keeps       φ, 10 float32 an activation, charged under both conventions; boxes, charged under `strict`.

Deviations  Exemplars are stored compressed and decoded from those bytes; the authors' code keeps paths to whole images.
            They draw boxes on a 224² view, map them to the original size and compress at full resolution, before the
            random crop; here an image is what the data set's card says, 224² or less, and so is its box. Boxes lie
            on even pixels. Upper-level steps are rounded up: a task of one class has one. Where no pixel of a resized
            CAM is above τ the box holds its peak. A step on φ whose loss or gradient is not finite is left out and
            counted in the log. The authors judge the two-branch model (foster.py).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.codecs import Box, Codec, Encoded
from cilbench.budgets.sealed import State
from cilbench.methods.bibliography import cite
from cilbench.methods.cim.boxes import as_stored, class_activation_map, fixed_boxes, hybrid, resize, tight_boxes
from cilbench.methods.cim.rational import RELU, Twin, activations, learns, phi_of
from cilbench.methods.contract import Context, MethodCard, Scenario
from cilbench.methods.networks.heads import class_rows
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.config import Count, Positive, Schedule, Share, Weight, in_epochs
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.flops import Repeated
from cilbench.methods.training.images import TaskDataImages, iter_batches
from cilbench.methods.training.loop import Loss, TaskData, not_captured
from cilbench.methods.training.numerics import full_precision

PARTS = ("held_out", "own", "sparsity", "inner", "mask_area")  # of the upper level's loss, as they are logged
CHUNK = 256  # images at a time where boxes are drawn: bounds memory, changes no number

Mask = Literal["learned", "cam", "full", "centre", "random"]


class CIM:
    """What stays between tasks: φ. Boxes stay with their exemplars."""

    @dataclass(frozen=True)
    class Config:
        """Names in quotes: the authors' `cim-imagenet100.json`. Degrees 5/4 and η = 4 are structural (`RELU`, `Box`).

        `mask` other than "learned" are the poster's ablations: "cam" has ReLU for φ, "full" no box, the rest a fixed
        size.
        """

        mask: Mask = "learned"
        tau: Share = 0.6  # "mask_threshold"
        renew_every: Count = in_epochs(40)  # "cam_update_interval"
        show_growth: Weight = 0.1  # "randombbxblur_prob_incre"
        phi_lr: Positive = 0.01  # "incre_phi_lr"; φ's learning rate falls as θ's does: foster.py cosine, der.py steps
        phi_weight_decay: Weight = 5e-4  # "incre_weight_decay": the authors' Adam has it too, models/foster.py
        phi_clip: Positive | None = 1.0  # "max_phi_grad_norm"; √2 times as much after a first task, models/foster.py
        meta_batch: Count = 16  # "meta_batch_size"
        lr_ratio: Positive = 0.1  # "lr_ratio": learning rate of the virtual step over θ's
        steps_per_class: Weight = 0.5  # "num_meta_iters_per_cls": upper-level steps an epoch for each new class
        classification: Weight = 0.2  # "div_coef"
        sparsity: Weight = 0.1  # "reg_coef", on the mean of CAM²
        # not the authors': b = 0.36 costs what CIM's boxes did on the poster, 20/38.3 of an image
        box_side: Share = 0.6

    # On these bases other defaults: the authors' models/der.py.
    by_base: ClassVar[Mapping[str, Mapping[str, Any]]] = {"der": {"sparsity": 0.0, "lr_ratio": 1.0, "phi_clip": None}}
    head_bias: ClassVar[bool] = False  # convs/linears.py, SimpleLinear
    codec: Codec
    card: ClassVar[MethodCard] = MethodCard(
        key="cim",
        name="CIM",
        title="Class-Incremental Exemplar Compression for Class-Incremental Learning",
        arxiv="2303.14042",
        bibtex=cite("luo2023cim"),
        heads=(),
        rehearsal=True,
        port="exemplars stored compressed and decoded from their bytes; the mask's parameters are charged, the boxes "
        "under strict; boxes and compression at the stored resolution, not the original's",
    )

    def __init__(self, config: Config, scenario: Scenario) -> None:
        self.config = config
        self.codec = Box()
        self.phi_A10 = torch.empty(0, len(RELU))

    def start_task(
        self,
        net: IncrementalNet,
        task_data: TaskData,
        transform: Transform,
        schedule: Schedule,
        context: Context,
        task: int,
    ) -> "TaskMasks":
        """Boxes and φ at work on the net of one task, in which what is not to learn is frozen already."""
        self.phi_A10 = phi_of(activations(net), self.phi_A10).to(task_data.images.device)
        return TaskMasks(self.config, self.phi_A10, net, task_data, transform, schedule, context, task)

    def export(self, net: IncrementalNet) -> dict[str, Tensor]:
        """State: φ of the activations of `net`, float32 [A, 10]. To plan with, a net without data will do."""
        return {"other/phi": phi_of(activations(net), self.phi_A10)} if self.config.mask == "learned" else {}

    def load(self, state: State) -> None:
        self.phi_A10 = state.get("other/phi", self.phi_A10)


@dataclass
class TaskMasks:
    """CIM in one task: φ learns after every epoch, boxes are renewed, new images are shown as they would be stored."""

    config: CIM.Config
    phi: Tensor  # [A, 10], what CIM carries on; learned in place
    net: IncrementalNet
    task_data: TaskData
    transform: Transform
    schedule: Schedule
    context: Context
    task: int

    def __post_init__(self) -> None:
        self.learned = self.config.mask == "learned"
        self.plain_net = Twin(self.net, rational=False)
        self.mask_net = Twin(self.net, rational=True) if self.learned else self.plain_net
        device = self.phi.device
        self.learns_A1 = torch.tensor([[learns(self.net, name)] for name in activations(self.net)], device=device)
        self.loss: Loss | None = None  # the method's, once `fit` has told it
        # Tensors, which a captured step reads anew whenever it is replayed: learning rates of φ and of θ's virtual
        # step; over an epoch, each part of the loss and the number of steps that were taken.
        self.phi_lr, self.rate = torch.zeros((), device=device), torch.zeros((), device=device)
        self.sums = torch.zeros(len(PARTS) + 1, device=device)
        self.optimizer = torch.optim.Adam(
            [self.phi.requires_grad_()],
            lr=self.phi_lr,
            weight_decay=self.config.phi_weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        note = not_captured(self.context, self.task, "masks")
        self.take: Callable[..., None] = self.upper_step
        if self.transform.capturable:
            self.take = CudaGraphStep(self.upper_step, device, self.context.generator, note)
        self.take = Repeated(self.take)
        self.steps = math.ceil(self.config.steps_per_class * len(self.task_data.labels[: self.task_data.new].unique()))
        self.show_probability = 0.0
        self.boxes_N4 = torch.empty(0, 4)  # of the task's own images, once they are drawn

    def show(self, batch: Tensor, positions: Tensor) -> Tensor:
        """New images at random as they would be stored; exemplars come from their bytes anyway."""
        if not self.show_probability:
            return batch
        draw_B = torch.rand(len(positions), device=batch.device, generator=self.context.generator)
        swap_B = (draw_B < self.show_probability) & (positions < self.task_data.new)
        stored = as_stored(batch, self.boxes_N4[positions.clamp(max=self.task_data.new - 1)])
        return torch.where(swap_B[:, None, None, None], stored, batch)

    def before_epoch(self, epoch: int) -> None:
        """Every `renew_every` epochs new boxes, and compressed images are shown more often."""
        if epoch and epoch % self.config.renew_every == 0:
            self.show_probability = min(1.0, epoch // self.config.renew_every * self.config.show_growth)
            self._log(epoch, {"box_share": self.renew()})

    def after_epoch(self, epoch: int, lr: float, loss: Loss) -> None:
        """The upper level. `lr` is θ's in this epoch, `loss` the method's own, of the net as it is."""
        if not self.learned:
            return
        self.loss = loss
        self.phi_lr.fill_(self.config.phi_lr * lr / self.schedule.lr)
        self.rate.fill_(self.config.lr_ratio * lr)
        self._log(epoch, self.upper_level())

    def _log(self, epoch: int, record: Mapping[str, float]) -> None:
        self.context.log({"task": self.task, "epoch": epoch, **{f"cim_{key}": value for key, value in record.items()}})

    def herded(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images as they would be stored: base.py of the authors' code extracts the features of those."""
        return as_stored(images, self.boxes(images, labels))

    def encode(self, images: Tensor, labels: Tensor, limit_bytes: int = 0) -> Encoded:
        """Boxes by the mask model as it is now; the bytes are on the CPU."""
        return Box().encode(images.cpu(), self.boxes(images, labels).cpu())

    def state_dict(self) -> dict[str, Tensor]:
        moments = {key: t for key, t in self.optimizer.state.get(self.phi, {}).items() if isinstance(t, Tensor)}
        return {
            "phi": self.phi,
            "boxes": self.boxes_N4,
            "show_probability": torch.tensor(self.show_probability, dtype=torch.float64),
            **{f"adam.{key}": value for key, value in moments.items()},
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.phi.data.copy_(tensors["phi"])
        self.boxes_N4 = tensors["boxes"].to(self.phi.device)
        self.show_probability = tensors["show_probability"].item()
        moments = {key.removeprefix("adam."): t for key, t in tensors.items() if key.startswith("adam.")}
        self.optimizer.state[self.phi] = {key: moment.to(self.phi.device) for key, moment in moments.items()}

    def renew(self) -> float:
        """New boxes for the task's own images; returns their mean share of the image."""
        height, width = self.task_data.images.shape[2:]
        self.boxes_N4 = self.boxes(self.task_data.images, self.task_data.labels[: self.task_data.new])
        specs = ((height + 1) // 2) * ((width + 1) // 2)
        return (self.boxes_N4[:, 2:].float().prod(1) / specs).mean().item()

    @torch.no_grad()
    def boxes(self, images: TaskDataImages, labels: Tensor) -> Tensor:
        """Of the first N images, uint8 [≥ N, C, H, W], with labels int64 [N]: int16 [N, 4], in units of two pixels."""
        (height, width), device = images.shape[2:], labels.device
        cells_2 = torch.tensor([(height + 1) // 2, (width + 1) // 2], device=device)
        if self.config.mask not in ("learned", "cam"):
            at_N2 = torch.full((len(labels), 2), 0.5, device=device)
            if self.config.mask == "random":
                at_N2 = at_N2.uniform_(generator=self.context.generator)
            return fixed_boxes(at_N2, 0.0 if self.config.mask == "full" else self.config.box_side, cells_2)
        boxes = []
        for start in range(0, len(labels), CHUNK):
            labels_B = labels[start : start + CHUNK]
            cam_Bhw, _ = self.masked(self.transform.eval(images[start : start + len(labels_B)]), labels_B)
            boxes.append(tight_boxes(resize(cam_Bhw, height, width), self.config.tau))
        return torch.cat(boxes)

    def theta(self) -> dict[str, Tensor]:
        """The live net's parameters and running statistics, cut off from it."""
        return {name: tensor.detach() for name, tensor in [*self.net.named_parameters(), *self.net.named_buffers()]}

    def masked(self, x_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """CAM [B, h, w] and logits of the mask model, which takes θ as a constant."""
        theta = self.theta()
        maps_BDhw, logits_BK = self.mask_net.run(theta, x_BCHW, self.phi if self.learned else ())
        rows_KD = class_rows(theta["head.weight"], maps_BDhw.shape[1])
        return class_activation_map(maps_BDhw, rows_KD[labels_B]), logits_BK

    def draw(self) -> list[Tensor]:
        """Positions of an epoch's batches, of new images and old: for the hybrid images, held out, and so on in turn.

        From one shuffled pass over the task's data; from another where that is not enough.
        """
        batches, device = list[Tensor](), self.task_data.labels.device
        while len(batches) < 2 * self.steps:
            order = torch.randperm(len(self.task_data.images), generator=self.context.generator, device=device)
            batches += order.split(self.config.meta_batch)
        return batches[: 2 * self.steps]

    def given(self, drawn: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 [B, C, H, W] and labels int64 [B] at each of the positions, read ahead where a file has them."""
        for positions, images in zip(drawn, iter_batches(self.task_data.images, drawn), strict=True):
            yield images, self.task_data.labels[positions]

    def upper_loss(
        self, inner: Tensor, labels_B: Tensor, held_out: Tensor, held_labels_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What φ is to lower (models/foster.py, outer_loss), and its `PARTS`."""
        x_BCHW = self.transform.train(inner, self.context.generator)
        cam_Bhw, logits_BK = self.masked(x_BCHW, labels_B)
        mask_BHW = resize(cam_Bhw, x_BCHW.shape[2], x_BCHW.shape[3])

        named = self.net.named_parameters()
        stepping = {name: p for name, p in named if p.requires_grad and not name.startswith("head.")}
        assert self.loss is not None
        with _evaluating(self.net):
            inner_loss = self.loss(hybrid(x_BCHW, mask_BHW), labels_B)
        with full_precision(labels_B.device):
            gradients = torch.autograd.grad(inner_loss, list(stepping.values()), create_graph=True)
        pairs = zip(stepping.items(), gradients, strict=True)
        stepped = {name: p.detach() - self.rate * gradient for (name, p), gradient in pairs}

        x_held_BCHW = self.transform.train(held_out, self.context.generator)
        _, held_logits_BK = self.plain_net.run(self.theta() | stepped, x_held_BCHW)
        held_loss = F.cross_entropy(held_logits_BK, held_labels_B)
        own_loss, sparsity = F.cross_entropy(logits_BK, labels_B), cam_Bhw.square().mean()
        total = held_loss + self.config.classification * own_loss + self.config.sparsity * sparsity
        parts = (held_loss, own_loss, sparsity, inner_loss, mask_BHW.mean())
        return total, dict(zip(PARTS, parts, strict=True))

    def upper_step(self, *given: Tensor) -> None:
        """One of Adam's steps on φ with its gradient clipped, unless a number is not finite. Waits for nothing."""
        total, parts = self.upper_loss(*given)
        with full_precision(self.phi.device):
            (gradient,) = torch.autograd.grad(total, [self.phi])
        self.phi.grad = torch.where(self.learns_A1, gradient, 0.0)
        limit = self.config.phi_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_([self.phi], limit * math.sqrt(2) if self.task else limit)
        sound = total.isfinite() & norm.isfinite()
        self.optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]  # as GradScaler has a step left out
        before = self.phi.detach().clone()
        self.optimizer.step()
        self.phi.data.copy_(torch.where(self.learns_A1, self.phi, before))  # weight decay moves what has no gradient
        row = torch.stack([*parts.values(), torch.ones_like(total)]).detach()
        self.sums += torch.where(sound, row, 0.0)

    def upper_level(self) -> dict[str, float]:
        """An epoch's steps on φ; how many, and the mean of each part of the loss."""
        self.sums.zero_()
        given = self.given(self.draw())
        for inner, held_out in zip(given, given, strict=True):
            self.take(*inner, *held_out)
        *sums, taken = self.sums.tolist()
        means = {part: value / taken for part, value in zip(PARTS, sums, strict=True)} if taken else {}
        return {"steps": int(taken), "skipped": self.steps - int(taken), **means}


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, then the modes there were."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

"""CIM: class-incremental exemplar compression by learned masks (Luo 2023, CVPR, arXiv 2303.14042).

A compression on top of a method: `icarl+cim`, `der+cim`. Of an exemplar the box round the pixels that tell its class
stays as it is, of the rest every second pixel of every second row (`Box`): b + (1 − b)/4 of an image, b its share.

Mask model  the network with its own weights θ and, in place of every ReLU, a learnable rational function φ.
Box         class activation map (CAM) of the mask model → min-max → image size → thresholded at τ → tightest box.
Bilevel     Lower level: the method's own steps on θ, in `fit`. Upper level, before every epoch: φ moves such that one
            SGD step of θ on images whose background is compressed lowers the loss on held-out images.
Keeps       φ, 10 float32 an activation, charged under both conventions; boxes, charged under `strict`.

Deviations  Exemplars are stored compressed and decoded from those bytes; the authors' code keeps paths to whole images.
            The virtual step descends cross-entropy on the task's own images and moves all trainable θ; in the authors'
            code the base method's whole loss, on exemplars too, and the head stays. Upper-level steps are rounded up:
            a task of one class has one. Where no pixel of a resized CAM is above τ the box holds its peak. A step on φ
            whose loss or gradient is not finite is left out and counted in the log.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cilbench.budgets.codecs import Box, Codec, Encoded
from cilbench.budgets.sealed import State
from cilbench.methods.contract import Context, MethodCard, Scenario
from cilbench.methods.networks.incremental import IncrementalNet
from cilbench.methods.training.augment import Transform
from cilbench.methods.training.config import Count, Positive, Schedule, Share, Weight, in_epochs
from cilbench.methods.training.engine import CudaGraphStep, full_precision
from cilbench.methods.training.images import TaskDataImages, iter_batches
from cilbench.methods.training.loop import TaskData, not_captured

PARTS = ("held_out", "own", "sparsity", "inner", "mask_area")  # of the upper level's loss, as they are logged
CHUNK = 256  # images at a time where boxes are drawn: bounds memory, changes no number

# ReLU as a Padé approximant, within 0.030 on [−3, 3] (Molina 2020, arXiv 1907.06732, Table 6): a_0 … a_5; b_1 … b_4.
ABOVE = (0.02996348, 0.61690165, 2.37539147, 3.06608078, 1.52474449, 0.25281987)
BELOW = (1.19160814, 4.40811795, 0.91111034, 0.34885983)
RELU = ABOVE + BELOW

Mask = Literal["learned", "cam", "full", "centre", "random"]


class Rational(nn.Module):
    """Padé activation of degrees 5/4, the safe form of Molina 2020 (arXiv 1907.06732): Σ a_i xⁱ / (1 + |Σ b_j xʲ|)."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.tensor(RELU))

    def forward(self, x: Tensor) -> Tensor:
        a0, a1, a2, a3, a4, a5, b1, b2, b3, b4 = self.phi.unbind()
        above = a0 + x * (a1 + x * (a2 + x * (a3 + x * (a4 + x * a5))))
        below = x * (b1 + x * (b2 + x * (b3 + x * b4)))
        return above / (1 + below.abs())


class Twin(nn.Module):
    """The structure of a net, in evaluation mode and without weights of its own; `rational` replaces every ReLU.

    Called with the net's tensors, so that nothing here moves the net's weights, gradients, statistics or modes.
    """

    def __init__(self, net: IncrementalNet, *, rational: bool) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        self.rationals = activations(net) if rational else []
        for name in self.rationals:
            self.net.set_submodule(name, Rational())
        self.to("meta").eval()

    def run(self, theta: State, x_BCHW: Tensor, phi: Iterable[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """`theta`: parameters and buffers by the net's names → feature maps [B, D, h, w] and logits [B, seen]."""
        tensors = {**theta, **{f"{name}.phi": row for name, row in zip(self.rationals, phi, strict=True)}}
        return functional_call(self, {f"net.{name}": tensor for name, tensor in tensors.items()}, (x_BCHW,))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        maps_BDhw = self.net.maps(x_BCHW)
        return maps_BDhw, self.net.logits(self.net.pooled(maps_BDhw))


def activations(net: nn.Module) -> list[str]:
    """Names of a net's ReLUs in the order of its modules; a new branch's come last."""
    return [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]


def class_activation_map(maps_BDhw: Tensor, rows_BD: Tensor) -> Tensor:
    """Head rows of the images' classes · feature maps, min-max normalised: [B, h, w] in [0, 1]; 0 where it is flat."""
    cam_Bhw = torch.einsum("bdhw,bd->bhw", maps_BDhw, rows_BD)
    cam_Bhw = cam_Bhw - cam_Bhw.amin((1, 2), keepdim=True)
    peak_B11 = cam_Bhw.amax((1, 2), keepdim=True)
    flat_B11 = peak_B11 < 1e-8
    return torch.where(flat_B11, 0.0, cam_Bhw / torch.where(flat_B11, 1.0, peak_B11))


def resize(cam_Bhw: Tensor, height: int, width: int) -> Tensor:
    """Bilinear: [B, h, w] → [B, H, W]. As matrix products: CUDA adds the gradient of `F.interpolate` in any order."""

    def taps(length: int, wanted: int) -> Tensor:
        """[length, wanted]: what a pixel gives to each of those it becomes."""
        impulses = torch.eye(length, device=cam_Bhw.device, dtype=cam_Bhw.dtype)
        return F.interpolate(impulses[None], wanted, mode="linear", align_corners=False)[0]

    with full_precision(cam_Bhw.device):
        return taps(cam_Bhw.shape[1], height).T @ cam_Bhw @ taps(cam_Bhw.shape[2], width)


def tight_boxes(cam_BHW: Tensor, tau: float) -> Tensor:
    """The smallest box in units of two pixels that holds every pixel above τ: int16 [B, 4]; 0 where all of the map is.

    Where nothing is above τ (a lone peak loses height when it is resized) it holds the peak.
    """
    peak_B11 = cam_BHW.amax((1, 2), keepdim=True)
    mask_BHW = (cam_BHW > tau) | ((peak_B11 <= tau) & (cam_BHW == peak_B11) & (cam_BHW > 0))
    cells_Byx = F.max_pool2d(mask_BHW[:, None].float(), 2, ceil_mode=True)[:, 0] > 0
    (top, height), (left, width) = _extent(cells_Byx.any(2)), _extent(cells_Byx.any(1))
    return torch.stack([top, left, height, width], 1).to(torch.int16)


def _extent(hit_BN: Tensor) -> tuple[Tensor, Tensor]:
    """The first True of each row and the length from it to the last one; 0 and 0 where there is none."""
    first_B = hit_BN.int().argmax(1)
    length_B = hit_BN.shape[1] - hit_BN.flip(1).int().argmax(1) - first_B
    return first_B, length_B * hit_BN.any(1)


def fixed_boxes(at_N2: Tensor, side: float, cells_2: Tensor) -> Tensor:
    """Boxes of `side` times each side of an image of `cells_2` units, at `at_N2` in [0, 1) of the way: int16 [N, 4]."""
    size_2 = (side * cells_2).round().long()
    start_N2 = (at_N2 * (cells_2 - size_2 + 1)).long()
    return torch.cat([start_N2, size_2.expand_as(start_N2)], 1).to(torch.int16)


def coarse(images: Tensor) -> Tensor:
    """Every second pixel of every second row in place of all four: [B, C, H, W], what `Box` keeps of a background."""
    height, width = images.shape[2:]
    return images[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]


def as_stored(images: Tensor, boxes_B4: Tensor) -> Tensor:
    """uint8 [B, C, H, W] as `Box` gives them back, without encoding them; boxes in units of two pixels."""
    top_B, left_B, rows_B, columns_B = boxes_B4.to(images.device).long().unbind(1)
    y_H, x_W = (torch.arange(side, device=images.device) // 2 for side in images.shape[2:])
    in_rows_BH = (y_H >= top_B[:, None]) & (y_H < (top_B + rows_B)[:, None])
    in_columns_BW = (x_W >= left_B[:, None]) & (x_W < (left_B + columns_B)[:, None])
    inside_B1HW = (in_rows_BH[:, :, None] & in_columns_BW[:, None, :])[:, None]
    return torch.where(inside_B1HW, images, coarse(images))


def hybrid(x_BCHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """mask · image + (1 − mask) · compressed image. As in models/foster.py the mask is soft, the resized CAM itself."""
    return mask_BHW[:, None] * x_BCHW + (1 - mask_BHW[:, None]) * coarse(x_BCHW)


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
        phi_lr: Positive = 0.01  # "incre_phi_lr"; cosine over the task, models/foster.py
        phi_weight_decay: Weight = 5e-4  # "incre_weight_decay": the authors' Adam has it too, models/foster.py
        phi_clip: Positive = 1.0  # "max_phi_grad_norm"
        meta_batch: Count = 16  # "meta_batch_size"
        lr_ratio: Positive = 0.1  # "lr_ratio": learning rate of the virtual step over θ's
        steps_per_class: Weight = 0.5  # "num_meta_iters_per_cls": upper-level steps an epoch for each new class
        classification: Weight = 0.2  # "div_coef"
        sparsity: Weight = 0.1  # "reg_coef", on the mean of CAM²
        # not the authors': b = 0.36 costs what CIM's boxes did on the poster, 20/38.3 of an image
        box_side: Share = 0.6

    codec: Codec
    card: ClassVar[MethodCard] = MethodCard(
        key="cim",
        name="CIM",
        title="Class-Incremental Exemplar Compression for Class-Incremental Learning",
        arxiv="2303.14042",
        bibtex=(
            """@inproceedings{luo2023cim,
  title = {Class-Incremental Exemplar Compression for Class-Incremental Learning},
  author = {Luo, Zilin and Liu, Yaoyao and Schiele, Bernt and Sun, Qianru},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2023},
  note = {arXiv:2303.14042}
}""",
        ),
        heads=(),
        rehearsal=True,
        port="exemplars stored compressed and decoded from their bytes; the mask's parameters are charged, the boxes "
        "under strict; its virtual step takes cross-entropy on new images for the base method's whole loss",
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
        """Boxes and φ at work on the net of one task; φ of activations that are new starts at ReLU."""
        self.phi_A10 = self._phi_of(net).to(task_data.images.device)
        return TaskMasks(self.config, self.phi_A10, net, task_data, transform, schedule, context, task)

    def export(self, net: IncrementalNet) -> dict[str, Tensor]:
        """State: φ of the activations of `net`, float32 [A, 10]. To plan with, a net without data will do."""
        return {"other/phi": self._phi_of(net)} if self.config.mask == "learned" else {}

    def load(self, state: State) -> None:
        self.phi_A10 = state.get("other/phi", self.phi_A10)

    def _phi_of(self, net: IncrementalNet) -> Tensor:
        count = len(activations(net))
        fresh = torch.tensor(RELU, device=self.phi_A10.device).repeat(max(0, count - len(self.phi_A10)), 1)
        return torch.cat([self.phi_A10.detach()[:count], fresh])


@dataclass
class TaskMasks:
    """CIM in one task: φ learns before every epoch, boxes are renewed, new images are shown as they would be stored."""

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
        self.take = CudaGraphStep(self.upper_step, device, self.context.generator, note)
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

    def before_epoch(self, epoch: int, lr: float) -> None:
        """The upper level; every `renew_every` epochs new boxes, and compressed images are shown more often."""
        record: dict[str, float] = {}
        if self.learned:
            cosine = 0.5 * (1 + math.cos(math.pi * epoch / self.schedule.epochs))
            self.phi_lr.fill_(self.config.phi_lr * cosine)
            self.rate.fill_(self.config.lr_ratio * lr)
            record = self.upper_level()
        if epoch and epoch % self.config.renew_every == 0:
            self.show_probability = min(1.0, epoch // self.config.renew_every * self.config.show_growth)
            record["box_share"] = self.renew()
        if record:
            named = {f"cim_{key}": value for key, value in record.items()}
            self.context.log({"task": self.task, "epoch": epoch, **named})

    def encode(self, images: Tensor, labels: Tensor) -> Encoded:
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
        """The live net's parameters and running statistics, cut off from it; what learns there has a gradient here."""
        named = [*self.net.named_parameters(), *self.net.named_buffers()]
        return {name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in named}

    def masked(self, x_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """CAM [B, h, w] and logits of the mask model, which takes θ as a constant."""
        theta = {name: tensor.detach() for name, tensor in self.theta().items()}
        maps_BDhw, logits_BK = self.mask_net.run(theta, x_BCHW, self.phi if self.learned else ())
        return class_activation_map(maps_BDhw, theta["head.weight"][labels_B]), logits_BK

    def draw(self) -> tuple[Tensor, Tensor]:
        """Positions of new images for the hybrid batch, and of others of the task, new and old, that are held out."""
        size, generator, device = self.config.meta_batch, self.context.generator, self.task_data.images.device
        inner = torch.randperm(self.task_data.new, generator=generator, device=device)[:size]
        order = torch.randperm(len(self.task_data.images), generator=generator, device=device)
        taken = (order[:, None] == inner).any(1)
        others_first = order[taken.to(torch.uint8).argsort(stable=True)]
        held_out = others_first[: min(size, len(order) - len(inner))]
        return inner, held_out if len(held_out) else inner  # a first task smaller than a batch leaves nothing

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

        theta = self.theta()
        learning = {name: tensor for name, tensor in theta.items() if tensor.requires_grad}
        _, hybrid_logits_BK = self.plain_net.run(theta, hybrid(x_BCHW, mask_BHW))
        inner_loss = F.cross_entropy(hybrid_logits_BK, labels_B)
        with full_precision(labels_B.device):
            gradients = torch.autograd.grad(inner_loss, list(learning.values()), create_graph=True)
        named = zip(learning.items(), gradients, strict=True)
        stepped = {name: p - self.rate * gradient for (name, p), gradient in named}

        x_held_BCHW = self.transform.train(held_out, self.context.generator)
        _, held_logits_BK = self.plain_net.run(theta | stepped, x_held_BCHW)
        held_loss = F.cross_entropy(held_logits_BK, held_labels_B)
        own_loss, sparsity = F.cross_entropy(logits_BK, labels_B), cam_Bhw.square().mean()
        total = held_loss + self.config.classification * own_loss + self.config.sparsity * sparsity
        parts = (held_loss, own_loss, sparsity, inner_loss, mask_BHW.mean())
        return total, dict(zip(PARTS, parts, strict=True))

    def upper_step(self, *given: Tensor) -> None:
        """One of Adam's steps on φ with its gradient clipped, unless a number is not finite. Waits for nothing."""
        total, parts = self.upper_loss(*given)
        with full_precision(self.phi.device):
            (self.phi.grad,) = torch.autograd.grad(total, [self.phi])
        norm = torch.nn.utils.clip_grad_norm_([self.phi], self.config.phi_clip)
        sound = total.isfinite() & norm.isfinite()
        self.optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]  # as GradScaler has a step left out
        self.optimizer.step()
        row = torch.stack([*parts.values(), torch.ones_like(total)]).detach()
        self.sums += torch.where(sound, row, 0.0)

    def upper_level(self) -> dict[str, float]:
        """An epoch's steps on φ; how many, and the mean of each part of the loss."""
        self.sums.zero_()
        given = self.given([positions for _ in range(self.steps) for positions in self.draw()])
        for inner, held_out in zip(given, given, strict=True):
            self.take(*inner, *held_out)
        *sums, taken = self.sums.tolist()
        means = {part: value / taken for part, value in zip(PARTS, sums, strict=True)} if taken else {}
        return {"steps": int(taken), "skipped": self.steps - int(taken), **means}

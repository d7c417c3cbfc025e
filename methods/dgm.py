"""DGM: Learning to Remember, a synaptic plasticity driven framework (Ostapenko 2019, CVPR, arXiv 1904.03137).

Keeps      the generator's shared weights, per task its BatchNorm, output layer and binary masks (one bit an entry), and the
           discriminator, whose class head is the classifier. No image.
Recomputes images of old classes (as many as a new class has, once per task, dropped after it), the reserved weights (from the masks).
Paper      conditional WGAN-GP whose discriminator also classifies; masks m = σ(s·e) learned with the generator under double annealing;
           what a task reserved is written no more; the generator grows after a task by what the task reserved.

Deviations, each with its reason:
- The paper adds newly reserved / fan-in units to a layer. That leaves out what the layer gains because the one before it grew, and grows far
  beyond the free capacity of the start. Here the gain counts (`grown_widths`), so a layer after T tasks has at most about T times its
  first size, which is what a budget can be planned for.
- Growth stops at the bytes the plan allows; what was clipped is logged (event `growth_clipped`). No growth after the last task.
- After a task its running statistics are set once under its binary masks: replay uses those masks, training ended on soft ones.
- The discriminator's running statistics follow the class batches alone: those are what the class head is evaluated on.
- Images are resized (bilinear, antialiased; not keeping the aspect) to a square side of 8, 16 or 32, for the discriminator too. 8 and 16
  are not in the paper: the generator loses its first doublings, the discriminator keeps at least two convolutions.
- Replayed images are rounded to uint8, as real ones are.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cilbench.budgets.ledger import Ledger
from cilbench.budgets.planning import Budget, BudgetTooSmall
from cilbench.budgets.sealed import State, ledger_of_state, pack_bits, unpack_bits
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task
from cilbench.methods.dgm_generator import (
    MaskedGenerator,
    Variant,
    batch_scale,
    compensation,
    epoch_scale,
    grown_widths,
    initial_weight,
    layer_widths,
    mask_shapes,
    sparsity,
)
from cilbench.methods.training import Diverged, in_epochs

SMALLEST_D = 4  # the plan halves `Config.d` no further


@dataclass(frozen=True)
class Config:
    """No CIFAR-100 settings were published. Defaults are the authors' for ImageNet-50 at 32 px (SAP/machine-learning-dgm,
    cfg/): colour, ten classes a task. "Ours" marks what they do not say."""

    variant: Variant = "dgmw"  # masks on every weight (dgmw) or every output unit (dgma), §3.2
    width: int | None = (
        None  # g; None: the widest that fits after the last task in the worst case. Authors: 64, MNIST 6
    )
    min_width: int = 4  # ours: below this the plan halves d before it narrows g; MNIST's six minus a third
    d: int = 32  # the discriminator's first width: MNIST, SVHN (ImageNet-50: 128)
    z_dim: int = 128  # cfg: nz
    epochs: int = in_epochs(100)  # cfg: niter 101
    batch_size: int = 70  # cfg: ImageNet-50 70, MNIST 64
    lr: float = 2e-4  # cfg: ImageNet-50 2e-4, SVHN 5e-4, MNIST 2e-3
    beta1: float = 0.5  # Adam, cfg and DCGAN
    s_max: float = 1e4  # cfg: dgmw 1e4, dgma 1e5 on MNIST
    sparsity: float = 1e-3  # λ. cfg: ImageNet-50 and SVHN 1e-3, MNIST 0.08
    gradient_penalty: float = 0.6  # cfg: ImageNet-50 0.6; WGAN-GP (arXiv 1704.00028) has 10
    critic_steps: int = 1  # approaches/DGMw.py: one for each generator step
    generator_class_weight: float = (
        1.0  # cfg: aux_G on ImageNet-50; without it the classes of a task are not told apart
    )
    max_steps: int | None = None  # at most so many batches an epoch; only the smoke recipe sets it


class Discriminator(nn.Module):
    """Images [B, C, S, S] in [−1, 1] → class logits [B, classes] and a critic's value [B]: 5×5 stride-2 convolutions d, 2d, 4d."""

    def __init__(
        self, channels: int, side: int, d: int, classes: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        widths = [d * 2**i for i in range(max(2, int(math.log2(side)) - 2))]
        shapes = [(o, i, 5, 5) for i, o in zip([channels, *widths], widths, strict=False)]
        self.convs = nn.ParameterList(nn.Parameter(initial_weight(shape, device)) for shape in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, device=device) for width in widths[1:])
        features = widths[-1] * (side // 2 ** len(widths)) ** 2
        self.classes = nn.Linear(features, classes, device=device)
        self.critic = nn.Linear(features, 1, device=device)

    def features(self, x_BCSS: Tensor, keep_statistics: bool = False) -> Tensor:
        """[B, D]. In training mode batch statistics are used, and kept only where asked for."""
        h = F.leaky_relu(F.conv2d(x_BCSS, self.convs[0], stride=2, padding=2), 0.2)
        for weight, norm in zip(self.convs[1:], self.norms, strict=True):
            h = F.conv2d(h, weight, stride=2, padding=2)
            if self.training and not keep_statistics:
                h = F.batch_norm(h, None, None, norm.weight, norm.bias, training=True)
            else:
                h = norm(h)
            h = F.leaky_relu(h, 0.2)
        return h.flatten(1)


class DGM:
    """Generative replay from a generator that cannot forget. `scores` are the discriminator's class head."""

    Config = Config
    card: ClassVar[MethodCard] = MethodCard(
        key="dgm",
        name="DGM",
        title="Learning to Remember: A Synaptic Plasticity Driven Framework for Continual Learning",
        arxiv="1904.03137",
        bibtex=(
            """@inproceedings{ostapenko2019learning,
  title = {Learning to Remember: A Synaptic Plasticity Driven Framework for Continual Learning},
  author = {Ostapenko, Oleksiy and Puscas, Mihai and Klein, Tassilo and J{\\"a}hnichen, Patrick and Nabi, Moin},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2019},
  note = {arXiv:1904.03137}
}""",
        ),
        heads=("head",),
        rehearsal=False,
        port="no CIFAR-100 numbers were published; growth counts the fan-in a layer gains, and is clipped at the budget",
    )

    def __init__(self, plan: Plan, config: Config, scenario: Scenario, device: torch.device) -> None:
        self.planned, self.config, self.scenario, self.device = plan, config, scenario, device
        self.side = working_side(scenario)
        self.initial_widths = layer_widths(plan.details["width"], self.side)
        self.generator = self._new_generator(self.initial_widths)
        self.discriminator = self._new_discriminator(1)

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config) -> Plan:
        """The widest generator (`details["width"]`) beside the widest discriminator (`details["d"]`) that leaves it `min_width`.

        The generator should have most bytes, being the memory: all that is known of old classes is in it. The discriminator is learned
        anew every task and only has to separate, but its size is quadratic in d: at a small budget it is what has to give.
        Raises BudgetTooSmall, and ValueError where z has no room for noise.
        """
        if config.z_dim <= scenario.classes:
            raise ValueError(
                f"dgm.z_dim {config.z_dim} leaves no noise beside {scenario.classes} classes: at least {scenario.classes + 1}"
            )
        halvings = [config.d >> i for i in range(config.d.bit_length()) if i == 0 or config.d >> i >= SMALLEST_D]
        if config.width is None:
            width, d = _widest(budget, scenario, config, halvings)
        else:
            width, d = config.width, _beside(config.width, budget, scenario, config, halvings)
        widths = _worst_widths(scenario, config, width)
        ledgers = [_ledger(scenario, config, d, widths[: t + 2]) for t in range(scenario.tasks)]
        published, strict = (
            tuple(
                min(ledger.total(a), budget.bytes) if a == budget.accounting else ledger.total(a) for ledger in ledgers
            )
            for a in ("published", "strict")
        )
        return Plan(
            budget=budget,
            backbone=f"dcgan-g{width}-d{d}",
            exemplars=0,
            exemplar_bytes=0,
            model_bytes=(published if budget.accounting == "published" else strict)[-1],
            published_bytes=published,
            strict_bytes=strict,
            details={"width": width, "d": d},
        )

    def learn(self, task: Task, context: Context) -> None:
        """One task. Raises Diverged."""
        config, t = self.config, task.index
        images, labels = self._resized(task.images), task.labels
        old_images, old_labels = self._replay_all(round(len(images) / len(self.scenario.new(t))), context.generator)
        pool, pool_labels = torch.cat([images, old_images]), torch.cat([labels, old_labels])

        self.discriminator = net = self._new_discriminator(self.scenario.seen(t)).train()
        generator = self.generator
        part = generator.add_task().train()
        embeddings = [
            torch.zeros(s, device=self.device, requires_grad=True) for s in generator.shapes(generator.widths)
        ]
        shared, writable = list(generator.layers), generator.writable()
        learning = [*shared, *embeddings, *part.parameters()]
        betas = (config.beta1, 0.999)
        net_adam = torch.optim.Adam(net.parameters(), lr=config.lr, betas=betas, fused=True)
        generator_adam = torch.optim.Adam(learning, lr=config.lr, betas=betas, fused=True)
        penalty = config.sparsity * sum(generator.widths) / sum(self.initial_widths)  # λ, scaled by the size reached

        def fakes(labels_B: Tensor, masks: Sequence[Tensor]) -> Tensor:
            return generator(self._noise(labels_B, context.generator), t, masks)

        def class_step(x_BCSS: Tensor, labels_B: Tensor) -> Tensor:
            loss = F.cross_entropy(net.classes(net.features(x_BCSS, keep_statistics=True)), labels_B)
            _step(net_adam, loss)
            return loss.detach()

        def critic_step(real_BCSS: Tensor, labels_B: Tensor, s: float) -> Tensor:
            with torch.no_grad():
                fake_BCSS = fakes(labels_B, [torch.sigmoid(s * e) for e in embeddings])
            share_B = torch.rand(len(real_BCSS), 1, 1, 1, device=self.device, generator=context.generator)
            between = torch.lerp(fake_BCSS, real_BCSS, share_B).requires_grad_()
            (slope,) = torch.autograd.grad(net.critic(net.features(between)).sum(), between, create_graph=True)
            flatness = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()  # WGAN-GP, arXiv 1704.00028, eq. 3
            loss = net.critic(net.features(fake_BCSS)).mean() - net.critic(net.features(real_BCSS)).mean()
            _step(net_adam, loss + config.gradient_penalty * flatness)
            return loss.detach()

        def generator_step(labels_B: Tensor, s: float, s_epoch: float) -> Tensor:
            masks = [torch.sigmoid(s * e) for e in embeddings]
            features_BD = net.features(fakes(labels_B, masks))
            loss = -net.critic(features_BD).mean() + penalty * sparsity(masks, generator.reserved)
            if config.generator_class_weight:
                loss = loss + config.generator_class_weight * F.cross_entropy(net.classes(features_BD), labels_B)
            for parameter, gradient in zip(learning, torch.autograd.grad(loss, learning), strict=True):
                parameter.grad = gradient
            for weight, free in zip(shared, writable, strict=True):
                weight.grad *= free  # zero from the first step on: Adam's moments stay zero and the weight where it is
            for e in embeddings:
                e.grad *= compensation(e.detach(), s, s_epoch)
            generator_adam.step()
            return loss.detach()

        steps = math.ceil(len(images) / config.batch_size)
        capped = min(steps, config.max_steps or steps)
        for epoch in range(config.epochs):
            s_epoch = epoch_scale(epoch, config.epochs, config.s_max)
            new_batches = self._shuffled(len(images), steps, context.generator)
            pool_batches = self._shuffled(len(pool), steps, context.generator)
            losses, trained = torch.zeros(3, device=self.device), 0
            for step in range(capped):
                s = batch_scale(step, steps, s_epoch)
                for part_B in pool_batches[step].split(config.batch_size):
                    class_loss = class_step(_signed(pool[part_B]), pool_labels[part_B])
                batch_B = new_batches[step]
                real_BCSS, labels_B = _signed(images[batch_B]), labels[batch_B]
                for _ in range(config.critic_steps):
                    critic_loss = critic_step(real_BCSS, labels_B, s)
                losses += torch.stack([class_loss, critic_loss, generator_step(labels_B, s, s_epoch)])
                trained += len(pool_batches[step])
            self._report(t, epoch, (losses / capped).tolist(), embeddings, context)
            context.progress((epoch + 1) / config.epochs, trained)

        with torch.no_grad():
            generator.keep([torch.sigmoid(config.s_max * e) >= 0.5 for e in embeddings])  # §3.2: thresholded at ½
        every = torch.tensor(self.scenario.new(t), device=self.device)
        generator.settle(self._noise(every.repeat(math.ceil(1024 / len(every))), context.generator), t)
        net.eval()
        if t < self.scenario.tasks - 1:
            self._grow(t, context)

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            net = self.discriminator.eval()
            return {"head": net.classes(net.features(_signed(self._resized(images))))}

    def state(self) -> State:
        return export(self.generator, self.discriminator)

    def load(self, state: State) -> None:
        state = {key: value.to(self.device) for key, value in state.items()}
        layers = range(len(self.initial_widths))
        tasks = len({key.split(".")[1] for key in state if key.startswith("generator/tasks.")})
        self.generator = generator = self._new_generator([state[f"generator/layers.{i}"].shape[1] for i in layers])
        for t in range(tasks):
            widths = [len(state[f"generator/tasks.{t}.norms.{i}.weight"]) for i in layers]
            generator.add_task(widths)
            shapes = generator.shapes(widths)
            generator.keep([unpack_bits(state[f"masks/{t}.{i}"], shapes[i]) for i in layers])
        self.discriminator = self._new_discriminator(len(state["head/classes.weight"]))
        _restore(generator, state, ("generator", "statistics"))
        _restore(self.discriminator, state, ("backbone", "head", "statistics"))

    def replay(self, labels: Tensor, task: int, rng: torch.Generator) -> Tensor:
        """uint8 images [N, C, S, S] of classes `labels` [N] that an earlier `task` brought."""
        generator = self.generator.eval()
        with torch.no_grad():
            made = [generator(self._noise(some, rng), task, generator.masks[task]) for some in labels.split(512)]
            return torch.cat([((x + 1) * 127.5).round().to(torch.uint8) for x in made])

    def _replay_all(self, per_class: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """As many images of every old class as a new class has: uint8 [N, C, S, S], int64 [N]."""
        images, labels = [], []
        for t in range(len(self.generator.tasks)):
            old = torch.tensor(self.scenario.new(t), device=self.device).repeat_interleave(per_class)
            images.append(self.replay(old, t, rng))
            labels.append(old)
        nothing = torch.empty(
            0, self.scenario.image_shape[0], self.side, self.side, dtype=torch.uint8, device=self.device
        )
        return torch.cat([nothing, *images]), torch.cat(
            [torch.empty(0, dtype=torch.int64, device=self.device), *labels]
        )

    def _shuffled(self, count: int, batches: int, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Positions 0…count−1 in a random order, cut into so many nearly equal batches."""
        return torch.randperm(count, device=self.device, generator=rng).tensor_split(batches)

    def _noise(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """z [B, Z]: the one-hot class, then N(0, 1)."""
        classes = self.scenario.classes
        noise_BN = torch.randn(len(labels), self.config.z_dim - classes, device=self.device, generator=rng)
        return torch.cat([F.one_hot(labels, classes), noise_BN], dim=1)

    def _resized(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → uint8 [N, C, S, S]."""
        if images.shape[2:] == (self.side, self.side):
            return images
        size = (self.side, self.side)
        resized = [F.interpolate(x.float(), size, mode="bilinear", antialias=True) for x in images.split(512)]
        return torch.cat([x.round().clamp(0, 255).to(torch.uint8) for x in resized])

    def _grow(self, task: int, context: Context) -> None:
        """Expand after a task, as far as the plan's bytes at this and at every later boundary allow."""
        generator, scenario = self.generator, self.scenario
        now, history = generator.widths, [part.widths for part in generator.tasks]
        taken = [int(reserved.sum()) for reserved in generator.reserved]
        wanted = grown_widths(self.config.z_dim, now, self.initial_widths, taken, self.config.variant)

        def fits(widths: list[int]) -> bool:
            later = [(t, history + [widths] * (t - task)) for t in range(task, scenario.tasks)]
            ledgers = (
                (t, _ledger(scenario, self.config, self.planned.details["d"], [*past, widths])) for t, past in later
            )
            bounds = self.planned
            return all(
                x.published <= bounds.published_bytes[t] and x.strict <= bounds.strict_bytes[t] for t, x in ledgers
            )

        def share(parts: int) -> list[int]:
            return [w + (to - w) * parts // 64 for w, to in zip(now, wanted, strict=True)]

        widths = wanted
        if not fits(wanted):
            widths = share(bisect.bisect_left(range(1, 64), True, key=lambda parts: not fits(share(parts))))
            event = {"event": "growth_clipped", "task": task}
            context.log(
                event | {f"wanted_{i}": w for i, w in enumerate(wanted)} | {f"got_{i}": w for i, w in enumerate(widths)}
            )
        generator.grow(widths)

    def _report(
        self, task: int, epoch: int, losses: list[float], embeddings: Sequence[Tensor], context: Context
    ) -> None:
        if not all(math.isfinite(loss) for loss in losses):
            raise Diverged(task, epoch, self.config.lr)
        names = ("loss", "critic_loss", "generator_loss")
        masked = sum(int((e >= 0).sum()) for e in embeddings) / sum(e.numel() for e in embeddings)
        record = {"task": task, "epoch": epoch, "lr": self.config.lr, "masked_share": masked}
        context.log(record | dict(zip(names, losses, strict=True)))

    def _new_generator(self, widths: Sequence[int]) -> MaskedGenerator:
        return MaskedGenerator(
            self.config.z_dim, widths, self.scenario.image_shape[0], self.config.variant, self.device
        )

    def _new_discriminator(self, classes: int) -> Discriminator:
        return Discriminator(self.scenario.image_shape[0], self.side, self.planned.details["d"], classes, self.device)


def working_side(scenario: Scenario) -> int:
    """Side of the square images that generator and discriminator work on: 8, 16 or 32."""
    longest = max(scenario.image_shape[1:])
    return 8 if longest <= 8 else 16 if longest <= 16 else 32


def export(generator: MaskedGenerator, discriminator: Discriminator) -> State:
    """The state; modules on the `meta` device give its shapes, which is how it is planned."""
    state: dict[str, Tensor] = {}
    for name, parameter in generator.named_parameters():
        state[f"generator/{name}"] = parameter.detach()
    for name, parameter in discriminator.named_parameters():
        kind = "backbone" if name.startswith(("convs", "norms")) else "head"
        state[f"{kind}/{name}"] = parameter.detach()
    for name, buffer in [*generator.named_buffers(), *discriminator.named_buffers()]:
        if not name.endswith("num_batches_tracked"):  # read only where momentum is None, which no layer here has
            state[f"statistics/{name}"] = buffer
    for t, masks in enumerate(generator.masks):
        for i, mask in enumerate(masks):
            state[f"masks/{t}.{i}"] = pack_bits(mask)
    return state


def _restore(module: nn.Module, state: State, kinds: Sequence[str]) -> None:
    """Copy into every parameter and running statistic of `module` what `export` called KIND/NAME."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not name.endswith("num_batches_tracked"):
                (key,) = (f"{kind}/{name}" for kind in kinds if f"{kind}/{name}" in state)
                tensor.copy_(state[key])


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _signed(images: Tensor) -> Tensor:
    """uint8 → float in [−1, 1]."""
    return images.float() / 127.5 - 1


def _ledger(scenario: Scenario, config: Config, d: int, widths: Sequence[Sequence[int]]) -> Ledger:
    """The ledger at a boundary. `widths`: those each task so far had, and last those the shared layers have now."""
    *past, now = widths
    channels, side = scenario.image_shape[0], working_side(scenario)
    generator = MaskedGenerator(config.z_dim, now, channels, config.variant, "meta")
    for task_widths in past:
        generator.add_task(task_widths)
        generator.masks.append([torch.empty(s, dtype=torch.bool, device="meta") for s in generator.shapes(task_widths)])
    return ledger_of_state(export(generator, Discriminator(channels, side, d, scenario.seen(len(past) - 1), "meta")))


def _worst_widths(scenario: Scenario, config: Config, width: int) -> list[list[int]]:
    """Widths at each task, and once more the last, if every task reserves all there is."""
    initial = layer_widths(width, working_side(scenario))
    widths = [initial]
    for _ in range(scenario.tasks - 1):
        sizes = [math.prod(shape) for shape in mask_shapes(config.z_dim, widths[-1], config.variant)]
        widths.append(grown_widths(config.z_dim, widths[-1], initial, sizes, config.variant))
    return [*widths, widths[-1]]


def _final_bytes(budget: Budget, scenario: Scenario, config: Config, widths: Sequence[Sequence[int]], d: int) -> int:
    return _ledger(scenario, config, d, widths).total(budget.accounting)


def _widest(budget: Budget, scenario: Scenario, config: Config, halvings: Sequence[int]) -> tuple[int, int]:
    """(g, d): the largest d that leaves a g of at least `min_width`; the smallest d if none does. Raises BudgetTooSmall."""

    def fits(width: int, d: int) -> bool:
        return _final_bytes(budget, scenario, config, _worst_widths(scenario, config, width), d) <= budget.bytes

    d = next((d for d in halvings if fits(config.min_width, d)), halvings[-1])
    if not fits(1, d):
        smallest = _final_bytes(budget, scenario, config, _worst_widths(scenario, config, 1), d)
        raise BudgetTooSmall(
            "dgm", budget.bytes, smallest, f"a generator of width 1, grown {scenario.tasks} times, and d {d}"
        )
    low, high = 1, 2
    while fits(high, d):
        low, high = high, 2 * high
    width = low + bisect.bisect_left(range(low + 1, high), True, key=lambda g: not fits(g, d))
    return width, d


def _beside(width: int, budget: Budget, scenario: Scenario, config: Config, halvings: Sequence[int]) -> int:
    """d beside a generator of a given width: the largest that leaves its growth whole, else the smallest. Raises BudgetTooSmall."""
    worst = _worst_widths(scenario, config, width)
    for d in halvings:
        if _final_bytes(budget, scenario, config, worst, d) <= budget.bytes:
            return d
    smallest = _final_bytes(budget, scenario, config, [worst[0]] * (scenario.tasks + 1), halvings[-1])
    if smallest > budget.bytes:
        raise BudgetTooSmall(
            "dgm", budget.bytes, smallest, f"a generator of width {width} that does not grow, and d {halvings[-1]}"
        )
    return halvings[-1]

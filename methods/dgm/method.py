"""DGM: Learning to Remember, a synaptic plasticity driven framework (Ostapenko 2019, CVPR, arXiv 1904.03137).

Keeps      the generator's shared weights; per task its BatchNorm, output layer and masks (one bit an entry); the
           discriminator, whose class head is the classifier. No image; `dgm+exemplars`: real ones, see below.
Recomputes images of old classes (as many as a new class has, dropped after the task); what the masks reserve.
Paper      a conditional WGAN-GP whose discriminator also classifies; masks m = σ(s·e) learned with the generator under
           double annealing; what a task reserved is never written again, and the generator grows by as much.

Deviations, each with its reason:
- Growth. The paper adds (newly reserved / fan-in) units to a layer. That leaves out what the layer gains because the
  one before it grew, and exceeds the free capacity of the start by far. Here that gain counts (`grown_widths`): what is
  free is at least what it was, and T tasks make a layer at most about T times its first size, which can be planned.
- Growth stops at the bytes the plan allows and is logged then (event `growth_clipped`); none after the last task.
- A task's running statistics are set once at its end, under its binary masks: replay uses those, training soft ones.
- The discriminator's running statistics follow the class batches alone: the class head is evaluated with them.
- Output layers start from N(0, 1/fan-in), all other weights from DCGAN's N(0, 0.02): widths under a budget are small,
  and 0.02 leaves images at grey for longer than small data sets train.
- Images are resized (bilinear, antialiased, to a square) to 8, 16 or 32 pixels a side, for the discriminator as well.
  At 8 and 16, not in the paper, the generator lacks its first layers (a width of g is always the last shared layer's);
  the discriminator keeps at least two convolutions.
- Replayed images are rounded to uint8, as real ones are. No augmentation, as in the paper.

`exemplars` (`dgm+exemplars`) keeps real images with the bytes left over. The authors' code has no such variant; ours:
- Bytes. The plan is that of dgm, and growth comes first: exemplars get what the budget has left once the networks of a
  boundary are weighed, ⌊left / seen⌋ a class, whatever `--fill` says. The plan reserves for masks that take all there
  is, so more is left than it promises; the next boundary leaves less, and they shrink.
- Choice. Herded, as iCaRL's, by the features that the class head sees; stored as they are.
- Use. In the class loss an old class's exemplars take the place of as many of its generated images, so that classes
  stay as balanced as they are in dgm. The critic and the generator learn from the task's own images alone.
"""

import bisect
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cilbench.budgets.codecs import Encoded, Raw
from cilbench.budgets.ledger import Accounting, Ledger
from cilbench.budgets.planning import Budget, BudgetTooSmall
from cilbench.budgets.sealed import State, Storage, ledger_of_state, unpack_bits
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.dgm.generator import (
    Discriminator,
    MaskedGenerator,
    Variant,
    batch_scale,
    epoch_scale,
    export,
    grown_widths,
    layer_widths,
    mask_shapes,
    restore,
)
from cilbench.methods.dgm.steps import Adversaries, signed
from cilbench.methods.rehearsal.memory import ExemplarMemory
from cilbench.methods.training.checkpoint import Resumable
from cilbench.methods.training.config import Count, Positive, Rate, Weight, in_epochs
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.images import Images
from cilbench.methods.training.loop import Diverged, all_finite, in_batches, not_captured
from cilbench.methods.training.numerics import full_precision

SMALLEST_D = 4  # the plan halves `DGM.Config.d` no further
COUNT_BYTES = 4  # strict: of an exemplar memory, the number of a class's images, int32
CALIBRATION_IMAGES = 1024  # images whose statistics a task's BatchNorm keeps


class DGM:
    """Generative replay from a generator that cannot forget. `scores`: the discriminator's class head."""

    @dataclass(frozen=True)
    class Config:
        """Nothing was published for CIFAR-100: the defaults are the authors' for ImageNet-50 (32 pixels, ten classes).

        "cfg" is their cfg/*.yml (github.com/SAP-archive/machine-learning-dgm), "ours" what they do not say.
        """

        variant: Variant = "dgmw"  # a mask on every weight (dgmw) or every output unit (dgma), §3.2
        width: Count | None = None  # g; None: the widest whose worst case fits. cfg: 64, MNIST and SVHN 6
        min_width: Count = 4  # ours: the plan narrows the discriminator before the generator gets narrower than this
        d: Count = 32  # the discriminator's first width at most (see `plan`). cfg: MNIST and SVHN 32; ImageNet-50 128
        z_dim: Count = 128  # cfg: nz; the one-hot class takes the leading entries
        epochs: Count = in_epochs(100)  # cfg: niter 101
        batch_size: Count = 70  # cfg: ImageNet-50 70, MNIST 64
        lr: Positive = 2e-4  # cfg: ImageNet-50 2e-4, SVHN 5e-4, MNIST 2e-3
        beta1: Rate = 0.5  # Adam's; cfg
        s_max: Positive = 1e4  # cfg: dgmw 1e4, dgma 1e5
        sparsity: Weight = 1e-3  # λ. cfg: ImageNet-50 and SVHN 1e-3, MNIST 0.08
        gradient_penalty: Weight = 0.6  # cfg: ImageNet-50 0.6; WGAN-GP itself has 10
        critic_steps: Count = 1  # a generator step; approaches/DGMw.py
        generator_class_weight: Weight = (
            1.0  # cfg: aux_G of ImageNet-50; without it a task's classes are not told apart
        )
        exemplars: bool = False  # ours: real images with the bytes left over
        max_steps: Count | None = None  # at most so many batches an epoch; only the smoke recipe sets it

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
        port="no CIFAR-100 numbers were published; the generator grows less than in the paper, and within the budget",
    )
    discriminator: Discriminator  # new in every task

    def __init__(self, plan: Plan, config: Config, scenario: Scenario, device: torch.device) -> None:
        self.bounds, self.config, self.scenario, self.device = plan, config, scenario, device
        self.side, self.d = working_side(scenario), plan.details["d"]
        self.classes_K = torch.arange(scenario.classes, device=device)
        self.initial_widths = layer_widths(plan.details["width"], self.side)
        self.generator = self._new_generator(self.initial_widths)
        self.memory = ExemplarMemory(Raw(), scenario, plan.exemplar_bytes, overhead_bytes=0)

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: Config) -> Plan:
        """The widest generator (`details["width"]`) beside the widest discriminator (`details["d"]`) that leaves room.

        The generator should have most bytes: all that is known of old classes is in it, while the discriminator is
        learned anew in every task. But one too narrow to tell images apart teaches the generator nothing: d goes down
        by halves (a quarter of its bytes), and only as long as the generator would not be `min_width` wide.
        Raises BudgetTooSmall, and ValueError for a size below one or a z without room for noise.
        """
        smallest = min(config.d, config.min_width, 1 if config.width is None else config.width)
        if smallest < 1:
            raise ValueError(f"dgm: d, width and min_width must be at least 1, not {smallest}")
        if config.z_dim <= scenario.classes:
            needed = scenario.classes + 1
            raise ValueError(f"dgm.z_dim {config.z_dim} leaves no noise beside the one-hot class: at least {needed}")
        width, d = _widths(budget, scenario, config)
        worst = _worst_case(scenario, config, width)
        ledgers = [
            _ledger(budget.storage, scenario, config, d, worst[: t + 1], worst[t + 1]) for t in range(scenario.tasks)
        ]

        def totals(accounting: Accounting) -> tuple[int, ...]:
            limit = budget.bytes if accounting == budget.accounting else math.inf  # met by clipping growth
            return tuple(int(min(ledger.total(accounting), limit)) for ledger in ledgers)

        plan = Plan(
            budget=budget,
            backbone=f"dcgan-g{width}-d{d}",
            exemplars=0,
            exemplar_bytes=(0,) * scenario.tasks,
            model_bytes=totals(budget.accounting)[-1],
            published_bytes=totals("published"),
            strict_bytes=totals("strict"),
            details={"width": width, "d": d},
        )
        return _with_exemplars(plan, scenario, ledgers) if config.exemplars else plan

    @classmethod
    def work(cls, plan: Plan, config: Config, scenario: Scenario, task: int) -> TrainingCost:
        """Images of the class loss; an old class is replayed with as many as a new one has."""
        steps = max(1, math.ceil(scenario.images_of(len(scenario.new(task))) / config.batch_size))
        taken = min(steps, config.max_steps or steps)
        return TrainingCost(config.epochs * scenario.images_of(scenario.seen(task)) * taken // steps, config.epochs)

    def learn(self, task: Task, context: Context) -> None:
        """Raises Diverged, Interrupted."""
        with full_precision(self.device):  # the gradient penalty is differentiated twice: float32 in any precision
            self._learn(task, context)

    def _learn(self, task: Task, context: Context) -> None:
        config, generator, t, rng = self.config, self.generator, task.index, context.generator
        images, labels = self._resized(task.images), task.labels
        old_images, old_labels = self._rehearsed(max(1, round(len(images) / len(self.scenario.new(t)))), rng)
        pool, pool_labels = torch.cat([images, old_images]), torch.cat([labels, old_labels])

        self.discriminator = net = self._new_discriminator(self.scenario.seen(t))
        part = generator.add_task(generator.widths)
        shapes = generator.shapes(generator.widths)
        embeddings = [torch.zeros(shape, device=self.device).requires_grad_() for shape in shapes]
        learning = [*generator.layers, *part.parameters(), *embeddings]
        net_adam, generator_adam = self._adam(net.parameters()), self._adam(learning)
        adversaries = Adversaries(
            made=lambda labels_B, masks: generator(self._noise(labels_B, rng), t, masks),
            net=net,
            net_adam=net_adam,
            generator_adam=generator_adam,
            embeddings=embeddings,
            writable=generator.writable(),
            reserved=generator.reserved,
            rng=rng,
            gradient_penalty=config.gradient_penalty,
            sparsity_weight=config.sparsity * sum(generator.widths) / sum(self.initial_widths),  # current/initial, §3.2
            class_weight=config.generator_class_weight,
            critic_steps=config.critic_steps,
        )
        take = CudaGraphStep(adversaries, self.device, rng, not_captured(context, t, "learning"))

        steps = math.ceil(len(images) / config.batch_size)
        taken = min(steps, config.max_steps or steps)
        modules, optimizers = [generator, net], [net_adam, generator_adam]
        going = Resumable(context.checkpoint, "learning", rng, modules, optimizers, [_Leaves(embeddings)])
        for epoch in range(int(going.numbers.get("epoch", 0)), config.epochs):
            if going.due():
                going.save({"epoch": epoch}, {})
            started = time.perf_counter()
            s_epoch = epoch_scale(epoch, config.epochs, config.s_max)
            new = torch.randperm(len(images), device=self.device, generator=rng).tensor_split(steps)
            mixed = torch.randperm(len(pool), device=self.device, generator=rng).tensor_split(steps)
            adversaries.begin()
            for step in range(taken):
                adversaries.anneal(batch_scale(step, steps, s_epoch), s_epoch)
                chunks = mixed[step].tensor_split(math.ceil(len(mixed[step]) / config.batch_size))
                rehearsed = [of[some_B] for some_B in chunks for of in (pool, pool_labels)]
                take(images[new[step]], labels[new[step]], *rehearsed)
            *sums, sound_steps = adversaries.sums.tolist()
            loss, critic_loss, generator_loss = (value / taken for value in sums)
            if not math.isfinite(loss + critic_loss + generator_loss):
                raise Diverged(t, epoch, int(sound_steps), config.lr)
            losses = {"loss": loss, "critic_loss": critic_loss, "generator_loss": generator_loss}
            seconds, shown = time.perf_counter() - started, sum(map(len, mixed[:taken]))
            speed = {"images": shown, "seconds": seconds, "images_per_second": shown / seconds}
            context.log({"task": t, "epoch": epoch, "lr": config.lr, **losses, **speed})
            context.progress((epoch + 1) / config.epochs, shown)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)  # gradients lie in the memory of graphs
        if not all_finite([*learning, *net.parameters()]):  # no later loss would tell
            raise Diverged(t, config.epochs - 1, taken - 1, config.lr, "the weights are")

        # §3.2: σ(s_max·e) ≥ ½. No layer is left without an entry: a narrow dgma can close them all
        generator.keep([e.detach() >= e.detach().max().clamp(max=0) for e in embeddings])
        classes = torch.tensor(self.scenario.new(t), device=self.device)
        generator.calibrate_batchnorm(self._noise(classes.repeat(math.ceil(CALIBRATION_IMAGES / len(classes))), rng), t)
        if t < self.scenario.tasks - 1:
            self._grow(t, context)
        if config.exemplars:
            self._keep_exemplars(task)

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), full_precision(self.device):
            return {"head": self.discriminator.classes(self._features(images))}

    def stored_samples(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Generated images of every class seen, sorted by class: uint8 [N, C, H, W], int64 [N]."""
        counts = torch.full((self._seen,), per_class, device=self.device)
        with full_precision(self.device):
            images, labels = self._generated(counts, generator)
        return resized(images, self.scenario.image_shape[1:]), labels

    def state(self) -> State:
        return {**export(self.generator, self.discriminator), **self.memory.export()}

    def load(self, state: State) -> None:
        layers = range(len(self.initial_widths))
        tasks = len({key.split(".")[1] for key in state if key.startswith("generator/tasks.")})
        self.generator = self._new_generator([state[f"generator/layers.{i}"].shape[1] for i in layers])
        for t in range(tasks):
            widths = [len(state[f"generator/tasks.{t}.norms.{i}.weight"]) for i in layers]
            shapes = self.generator.shapes(widths)
            self.generator.add_task(widths)
            self.generator.keep([unpack_bits(state[f"masks/{t}.{i}"].to(self.device), shapes[i]) for i in layers])
        self.discriminator = self._new_discriminator(len(state["head/classes.bias"]))
        restore(self.generator, state)
        restore(self.discriminator, state)
        self.memory.load(state)

    def replay(self, labels: Tensor, task: int, rng: torch.Generator) -> Tensor:
        """uint8 images [N, C, S, S] of classes `labels`, int64 [N], that an earlier `task` brought."""
        masks = self.generator.eval().masks[task]

        def made(labels_B: Tensor) -> Tensor:
            signed: Tensor = self.generator(self._noise(labels_B, rng), task, masks)
            return ((signed + 1) * 127.5).round().to(torch.uint8)

        return in_batches(made, labels)

    def _rehearsed(self, per_class: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Every old class `per_class` times, exemplars before generated images: uint8 [N, C, S, S], int64 [N]."""
        real, real_labels = self.memory.decoded(self.device)
        missing = (per_class - real_labels.bincount(minlength=self._seen)).clamp(min=0)
        images, labels = self._generated(missing, rng)
        return torch.cat([self._resized(real), images]), torch.cat([real_labels, labels])

    def _generated(self, counts: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """`counts[k]` images of class k: uint8 [N, C, S, S], int64 [N], sorted by class."""
        channels = self.scenario.image_shape[0]
        images = [torch.empty(0, channels, self.side, self.side, dtype=torch.uint8, device=self.device)]
        labels = [torch.empty(0, dtype=torch.int64, device=self.device)]
        for t in range(len(self.generator.tasks)):
            classes = torch.tensor(self.scenario.new(t), device=self.device)
            labels.append(classes.repeat_interleave(counts[classes]))
            images.append(self.replay(labels[-1], t, rng))
        return torch.cat(images), torch.cat(labels)

    @property
    def _seen(self) -> int:
        """Classes of the tasks the generator has."""
        tasks = len(self.generator.tasks)
        return self.scenario.seen(tasks - 1) if tasks else 0

    def _features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → what both heads of the discriminator see, [N, D]."""
        features_ND: Tensor = self.discriminator.eval()(signed(self._resized(images)))
        return features_ND

    def _keep_exemplars(self, task: Task) -> None:
        """Real images for the bytes that the networks leave: old classes shrink to their share, new ones get theirs."""
        budget, seen = self.bounds.budget, self.scenario.seen(task.index)
        networks = export(self.generator, self.discriminator)
        ledger = ledger_of_state(networks, budget.storage, self.scenario.allowance)
        left_bytes = _left_bytes(budget, ledger.total(budget.accounting), seen)
        dropped = len(self.memory.classes) < self.scenario.new(task.index).start  # at an earlier boundary, for good
        if dropped or left_bytes // seen < self.memory.min_bytes:
            self.memory.classes = []
            return

        def encode(images: Tensor, labels: Tensor) -> Encoded:
            return self.memory.codec.encode(images.cpu())

        self.memory.exemplar_bytes = (left_bytes,) * self.scenario.tasks
        self.memory.keep(task, self.scenario.new(task.index), self._features, encode)

    def _noise(self, labels_B: Tensor, rng: torch.Generator) -> Tensor:
        """z [B, Z]: the one-hot class, then N(0, 1)."""
        one_hot_BK = (labels_B[:, None] == self.classes_K).float()  # `F.one_hot` looks for labels out of range
        rest = self.config.z_dim - self.scenario.classes
        return torch.cat([one_hot_BK, torch.randn(len(labels_B), rest, device=self.device, generator=rng)], dim=1)

    def _resized(self, images: Images) -> Tensor:
        """uint8 [N, C, H, W] → uint8 [N, C, S, S]."""
        return resized(images, (self.side, self.side))

    def _grow(self, task: int, context: Context) -> None:
        """Expand after a task as far as the plan's bytes allow, now and, should nothing grow any more, later."""
        config, scenario, bounds = self.config, self.scenario, self.bounds
        widths, history = self.generator.widths, self.generator.history
        taken = [int(reserved.sum()) for reserved in self.generator.reserved]
        wanted = grown_widths(config.z_dim, widths, self.initial_widths, taken, config.variant)

        def share(parts: int) -> list[int]:
            return [width + (more - width) * parts // 64 for width, more in zip(widths, wanted, strict=True)]

        def too_large(parts: int) -> bool:
            for later in range(task, scenario.tasks):
                past = history + [share(parts)] * (later - task)
                ledger = _ledger(bounds.budget.storage, scenario, config, self.d, past, share(parts))
                if ledger.published > bounds.published_bytes[later] or ledger.strict > bounds.strict_bytes[later]:
                    return True
            return False

        parts = 64 if not too_large(64) else bisect.bisect_left(range(1, 64), True, key=too_large)
        if parts < 64:
            names = [f"{what}_{i}" for what in ("wanted", "got") for i in range(len(wanted))]
            sizes = dict(zip(names, [*wanted, *share(parts)], strict=True))
            context.log({"event": "growth_clipped", "task": task, **sizes})
        self.generator.grow(share(parts))

    def _adam(self, parameters: Iterable[Tensor]) -> torch.optim.Adam:
        lr, betas, cuda = self.config.lr, (self.config.beta1, 0.999), self.device.type == "cuda"
        return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True, capturable=cuda)

    def _new_generator(self, widths: Sequence[int]) -> MaskedGenerator:
        channels = self.scenario.image_shape[0]
        return MaskedGenerator(self.config.z_dim, widths, channels, self.config.variant, self.device)

    def _new_discriminator(self, classes: int) -> Discriminator:
        return Discriminator(self.scenario.image_shape[0], self.side, self.d, classes, self.device)


class _Leaves:
    """Tensors that are learned and belong to no module, for a checkpoint."""

    def __init__(self, leaves: Sequence[Tensor]) -> None:
        self.leaves = leaves

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{number}": leaf for number, leaf in enumerate(self.leaves)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for number, leaf in enumerate(self.leaves):
            leaf.data.copy_(tensors[f"{number}"])


def working_side(scenario: Scenario) -> int:
    """Side of the square images that both networks work on: 8, 16 or 32."""
    longest = max(scenario.image_shape[1:])
    return 8 if longest <= 8 else 16 if longest <= 16 else 32


def resized(images: Images, size: tuple[int, int]) -> Tensor:
    """uint8 [N, C, H, W] → uint8 of `size`, bilinear and antialiased, on the device."""
    if images.shape[2:] == size:
        return images[:]

    def resize(batch: Tensor) -> Tensor:
        smooth = F.interpolate(batch.float(), size, mode="bilinear", antialias=True)
        return smooth.round().clamp(0, 255).to(torch.uint8)

    return in_batches(resize, images)


def _left_bytes(budget: Budget, networks_bytes: int, seen: int) -> int:
    """Bytes for exemplars of `seen` classes beside the networks; under strict their counts are paid first."""
    counts_bytes = COUNT_BYTES * seen if budget.accounting == "strict" else 0
    return max(0, budget.bytes - networks_bytes - counts_bytes)


def _with_exemplars(plan: Plan, scenario: Scenario, worst: Sequence[Ledger]) -> Plan:
    """The plan with what is left beside the `worst` ledgers of the networks promised to exemplars.

    They get all that is left in the end, so what the budget binds may be all of it at every boundary; what the other
    accounting makes of it differs by no more than the worst networks have free, and the counts.
    """
    budget, tasks = plan.budget, range(scenario.tasks)
    seen = [scenario.seen(t) for t in tasks]
    left_bytes = tuple(_left_bytes(budget, worst[t].total(budget.accounting), seen[t]) for t in tasks)
    free_bytes = [worst[t].strict - worst[t].published + COUNT_BYTES * seen[t] for t in tasks]
    strict = budget.accounting == "strict"
    return replace(
        plan,
        exemplars=left_bytes[-1] // scenario.image_bytes,
        exemplar_bytes=left_bytes,
        published_bytes=(budget.bytes,) * len(tasks),
        strict_bytes=tuple(budget.bytes + (0 if strict else free_bytes[t]) for t in tasks),
    )


def _ledger(
    storage: Storage,
    scenario: Scenario,
    config: DGM.Config,
    d: int,
    history: Sequence[Sequence[int]],
    widths: Sequence[int],
) -> Ledger:
    """The ledger after as many tasks as `history` has widths, the shared layers being `widths` wide by then."""
    channels = scenario.image_shape[0]
    generator = MaskedGenerator(config.z_dim, widths, channels, config.variant, "meta")
    for past in history:
        generator.add_task(past)
        generator.masks.append(
            [torch.empty(shape, dtype=torch.bool, device="meta") for shape in generator.shapes(past)]
        )
    discriminator = Discriminator(channels, working_side(scenario), d, scenario.seen(len(history) - 1), "meta")
    return ledger_of_state(export(generator, discriminator), storage, scenario.allowance)


def _worst_case(scenario: Scenario, config: DGM.Config, width: int) -> list[list[int]]:
    """Widths in each task, the last twice (nothing grows after it), if every task reserves all there is."""
    initial = layer_widths(width, working_side(scenario))
    widths = [initial]
    for _ in range(scenario.tasks - 1):
        sizes = [math.prod(shape) for shape in mask_shapes(config.z_dim, widths[-1], config.variant)]
        widths.append(grown_widths(config.z_dim, widths[-1], initial, sizes, config.variant))
    return [*widths, widths[-1]]


def _widths(budget: Budget, scenario: Scenario, config: DGM.Config) -> tuple[int, int]:
    """Widths (g, d) of a plan. Raises BudgetTooSmall."""
    halves = [config.d, *(config.d >> i for i in range(1, config.d.bit_length()) if config.d >> i >= SMALLEST_D)]

    def needs(width: int, d: int, growing: bool = True) -> int:
        *history, last = _worst_case(scenario, config, width)
        if not growing:
            history, last = [history[0]] * len(history), history[0]
        return _ledger(budget.storage, scenario, config, d, history, last).total(budget.accounting)

    def refuse_unless_fits(width: int, growing: bool, what: str) -> None:
        smallest = needs(width, halves[-1], growing)
        if smallest > budget.bytes:
            raise BudgetTooSmall("dgm", budget.bytes, smallest, f"a generator of width {width} {what}, d {halves[-1]}")

    wanted = config.min_width if config.width is None else config.width
    d = next((d for d in halves if needs(wanted, d) <= budget.bytes), halves[-1])
    if config.width is not None:
        refuse_unless_fits(config.width, growing=False, what="that does not grow")
        return config.width, d
    refuse_unless_fits(1, growing=True, what=f"grown in {scenario.tasks} tasks")
    beyond = 2
    while needs(beyond, d) <= budget.bytes:
        beyond *= 2
    return bisect.bisect_right(range(1, beyond), budget.bytes, key=lambda width: needs(width, d)), d

"""DGM: Learning to Remember, a synaptic plasticity driven framework (Ostapenko 2019, CVPR, arXiv 1904.03137).

Keeps      the generator's shared weights; per task its BatchNorm, output layer and masks (one bit an entry); the
           discriminator, whose class head is the classifier. No image; `dgm+exemplars`: real ones, see below.
Recomputes images of old classes (as many as a new class has, dropped after the task); what the masks reserve.
Paper      a conditional WGAN-GP whose discriminator also classifies; masks m = σ(s·e) learned with the generator under
           annealing (dgmw: per epoch and per batch; dgma: per epoch); what a task reserved is never written again, and
           the generator grows by as much.

Networks (`generator.py`, `discriminator.py`) are the authors' for MNIST and SVHN. imagenet50, and images of 64
pixels a side and more, have those for ImageNet where the budget holds them with g = 64: residual generator, ResNet-18
discriminator that goes on from task to task, annealing by (epoch + 1) / epochs, λ scaled by parameters in place of
units. For dgma the authors' repository has none there.

Where this departs from the authors' code, and why:
- Bytes. g and d follow from the budget, and growth is planned to fill it (`planning.py`); the authors fix g and d.
  Growth beyond what the budget holds is cut and logged (event `growth_clipped`); there is none after the last task.
- dgma protects every weight that an earlier task reads. The authors leave those between a closed and a reserved unit
  free; a closed unit still emits ReLU(β), so what they generate of old classes drifts. `protect_closed_inputs=false`.
- A task's running statistics are set once at its end, under its binary masks: replay uses those, training soft ones.
  The authors' follow every batch under soft masks.
- The discriminator's running statistics are set before it is evaluated, to those of a batch of new and replayed images.
  The authors' follow every batch, the critic's as well, and so lag behind weights that the critic goes on moving; they
  choose the epoch by real images (`dgm.validation`), where that does the least harm. On held-out images of five classes
  of MNIST, shortened, three seeds, accuracy after tasks 2 to 5 was 79.4 % on average with statistics that lag, and
  88.2 % with the same weights and these.
- New images are shuffled in every epoch, and old ones with them; the authors keep the order of new images and pair the
  batch at a position with the replayed images at that position. The residual generator's step draws its own noise;
  the authors' reuses the critic's.
- The result is that of the last epoch, learned from all training images, and accuracy is over images. The authors
  report the mean of per-task accuracies at the epoch that is best on a validation split (MNIST 15 %, SVHN and CIFAR-10
  10 %), which holds real images of old classes. `dgm+validation` (`validation`; 10 %, on MNIST take
  --set dgm.validation=0.15) chooses the epoch so, and is charged for those images; a report has the mean of per-task
  accuracies beside the accuracy over images ("By task").
- Images are resized (bilinear, antialiased, to a square) to 8, 16 or 32 pixels a side, for the discriminator as well.
  At 8 and 16, not in the paper, the generator lacks its first layers (a width of g is always the last shared layer's);
  the discriminator keeps at least two convolutions.
- Replayed images are rounded to uint8, as real ones are. No augmentation, as in the paper.

`exemplars` (`dgm+exemplars`) keeps real images. The authors' code has no such variant; ours:
- Bytes. The networks are planned for half the budget (`networks_share`); exemplars get what is left of all of it once
  the networks of a boundary are weighed, ⌊left / seen⌋ a class, whatever `--fill` says.
- Choice. Herded, as iCaRL's, by the features that the class head sees; stored as they are.
- Use. In the class loss an old class's exemplars take the place of as many of its generated images, so that classes
  stay as balanced as they are in dgm. The critic and the generator learn from the task's own images alone.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from cilbench.budgets.codecs import Encoded, Raw
from cilbench.budgets.planning import Budget
from cilbench.budgets.sealed import State, ledger_of_state, unpack_bits
from cilbench.methods.bibliography import cite
from cilbench.methods.contract import Context, MethodCard, Plan, Scenario, Task, TrainingCost
from cilbench.methods.dgm.config import DGMConfig
from cilbench.methods.dgm.generator import (
    MaskedGenerator,
    grown_widths,
    layer_widths,
    statistics_of_one_batch,
    weight_shapes,
)
from cilbench.methods.dgm.masks import batch_scale, epoch_scale, histogram
from cilbench.methods.dgm.planning import (
    AnyDiscriminator,
    Design,
    affordable,
    export,
    left_for_exemplars,
    make_plan,
    restore,
    working_side,
)
from cilbench.methods.dgm.steps import Adversaries, Leaves, TaskImages, signed
from cilbench.methods.dgm.validation import Validation
from cilbench.methods.rehearsal.memory import ExemplarMemory
from cilbench.methods.training.checkpoint import Resumable, Stateful
from cilbench.methods.training.cudagraph import CudaGraphStep
from cilbench.methods.training.flops import Repeated, counted_as
from cilbench.methods.training.images import Images
from cilbench.methods.training.loop import Diverged, all_finite, in_batches, not_captured
from cilbench.methods.training.numerics import full_precision
from cilbench.methods.training.resize import resized

EPOCHS_A_JUDGEMENT = 2  # the authors look at the validation images in every second epoch, and in the last
CALIBRATION_IMAGES = 1024  # images whose statistics BatchNorm keeps, the generator's and the discriminator's


class DGM:
    """Generative replay from a generator that cannot forget. `scores`: the discriminator's class head."""

    Config: ClassVar[type[DGMConfig]] = DGMConfig

    card: ClassVar[MethodCard] = MethodCard(
        key="dgm",
        name="DGM",
        title="Learning to Remember: A Synaptic Plasticity Driven Framework for Continual Learning",
        arxiv="1904.03137",
        bibtex=cite("ostapenko2019learning"),
        heads=("head",),
        rehearsal=False,
        port="no CIFAR-100 numbers were published; widths and growth follow from the budget; the last epoch counts",
    )
    discriminator: AnyDiscriminator

    def __init__(self, plan: Plan, config: DGMConfig, scenario: Scenario, device: torch.device) -> None:
        self.bounds, self.config, self.scenario, self.device = plan, config, scenario, device
        self.design, self.side = Design.of(plan), working_side(scenario)
        self.classes_K = torch.arange(scenario.classes, device=device)
        self.initial_widths = layer_widths(self.design.width, self.design.layers(scenario))
        self.generator = self._new_generator(self.initial_widths)
        self.memory = ExemplarMemory(Raw(), scenario.image_shape, plan.exemplar_bytes, overhead_bytes=0)
        self.validation = Validation(scenario, config.validation) if config.validation else None

    @classmethod
    def plan(cls, budget: Budget, scenario: Scenario, config: DGMConfig) -> Plan:
        """See planning.py. Raises BudgetTooSmall, and ValueError for a z without room for noise."""
        return make_plan(budget, scenario, config)

    @classmethod
    def work(cls, plan: Plan, config: DGMConfig, scenario: Scenario, task: int) -> TrainingCost:
        """Images of the class loss; an old class is replayed with as many as a new one has."""
        steps = max(1, math.ceil(scenario.images_of(len(scenario.new(task))) / config.batch_size))
        taken = min(steps, config.max_steps or steps)
        return TrainingCost(config.epochs * scenario.images_of(scenario.seen(task)) * taken // steps, config.epochs)

    def learn(self, task: Task, context: Context) -> None:
        """Raises Diverged, Interrupted."""
        with full_precision(self.device):  # the gradient penalty is differentiated twice: float32 in any precision
            self._learn(task, context)

    def _learn(self, task: Task, context: Context) -> None:
        rng = context.generator
        if self.validation:
            task = self.validation.hold_out(task, rng)
        data = self._task_images(task, rng)
        self.discriminator = self._next_discriminator(self.scenario.seen(task.index))
        adversaries = self._adversaries(task.index, rng)
        self._train(adversaries, data, task.index, context)
        if self.validation:
            self.discriminator.load_state_dict(self.validation.best_state)
        else:
            self._calibrate(data.pool, rng)
        self._reserve(adversaries.embeddings, task.index, context)
        if self.config.exemplars:
            self._keep_exemplars(task)

    def _task_images(self, task: Task, rng: torch.Generator) -> TaskImages:
        """The task's own images, and as many of every old class as a new one has."""
        images, new = self._resized(task.images), len(self.scenario.new(task.index))
        with counted_as("replay"):
            old_images, old_labels = self._rehearsed(max(1, round(len(images) / new)), rng)
        pool, pool_labels = torch.cat([images, old_images]), torch.cat([task.labels, old_labels])
        return TaskImages(images, task.labels, pool, pool_labels, self.config.batch_size)

    def _adversaries(self, t: int, rng: torch.Generator) -> Adversaries:
        """The discriminator, and the generator with what task `t` adds to it."""
        config, generator, net = self.config, self.generator, self.discriminator
        part = generator.add_task(generator.widths, len(self.scenario.new(t)))
        shapes = generator.shapes(generator.widths)
        embeddings = [torch.zeros(shape, device=self.device).requires_grad_() for shape in shapes]
        return Adversaries(
            made=lambda labels_B, masks: self._made(labels_B, t, masks, rng),
            net=net,
            net_adam=self._adam(net.parameters()),
            generator_adam=self._adam([*generator.layers, *part.parameters(), *embeddings]),
            embeddings=embeddings,
            writable=generator.writable(config.protect_closed_inputs),
            reserved=generator.reserved,
            rng=rng,
            gradient_penalty=config.gradient_penalty,
            sparsity_weight=config.sparsity * self._size(generator.widths) / self._size(self.initial_widths),  # §3.2
            class_weight=self._class_weight(t),
            critic_steps=config.critic_steps,
            clip=config.generator_clip,
        )

    def _train(self, adversaries: Adversaries, data: TaskImages, t: int, context: Context) -> None:
        """All epochs of a task, from the context's checkpoint on."""
        epochs, lr, rng = self.config.epochs, self.config.lr, context.generator
        take = Repeated(CudaGraphStep(adversaries, self.device, rng, not_captured(context, t, "learning")))
        modules, optimizers = [self.generator, self.discriminator], [adversaries.net_adam, adversaries.generator_adam]
        others: list[Stateful] = [Leaves(adversaries.embeddings), *([self.validation] if self.validation else [])]
        going = Resumable(context.checkpoint, "learning", rng, modules, optimizers, others)
        taken = min(data.steps, self.config.max_steps or data.steps)
        for epoch in range(int(going.numbers.get("epoch", 0)), epochs):
            if going.due():
                going.save({"epoch": epoch}, {})
            started = time.perf_counter()
            shown = self._take_steps(adversaries, take, data, epoch, taken)
            losses, sound_steps = adversaries.losses(taken)
            if not math.isfinite(sum(losses.values())):
                raise Diverged(t, epoch, sound_steps, lr)
            seconds = time.perf_counter() - started
            speed = {"images": shown, "seconds": seconds, "images_per_second": shown / seconds}
            record = {"task": t, "epoch": epoch, "epochs": epochs, "lr": lr, **losses, **speed}
            context.log({**record, **self._looked_at(adversaries, data, epoch, context)})
            context.progress((epoch + 1) / epochs, shown)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)  # gradients lie in the memory of graphs
        if not all_finite([*adversaries.learning, *self.discriminator.parameters()]):  # no later loss would tell
            raise Diverged(t, epochs - 1, taken - 1, lr, "the weights are")

    def _take_steps(
        self, adversaries: Adversaries, take: Callable[..., None], data: TaskImages, epoch: int, taken: int
    ) -> int:
        """The first `taken` steps of an epoch; how many images of the pool they showed."""
        s_epoch, shown = self._epoch_scale(epoch), 0
        adversaries.begin()
        for step, (own, pooled) in enumerate(data.shuffled(adversaries.rng)[:taken]):
            s = batch_scale(step, data.steps, s_epoch) if self.config.variant == "dgmw" else s_epoch
            adversaries.anneal(s, s_epoch)
            take(*data.of_step(own, pooled))
            shown += len(pooled)
        return shown

    def _looked_at(self, adversaries: Adversaries, data: TaskImages, epoch: int, context: Context) -> dict[str, float]:
        """What an epoch's line says beside losses and speed, where it was asked for."""
        masks = "masks" in context.record
        found = dict(histogram(adversaries.embeddings, self._epoch_scale(epoch))) if masks else {}
        if self.validation and (epoch % EPOCHS_A_JUDGEMENT == 0 or epoch + 1 == self.config.epochs):
            self._calibrate(data.pool, context.generator)
            found["validation_top1"] = 100 * self.validation.judge(self._predicted, self.discriminator)
        return found

    def _epoch_scale(self, epoch: int) -> float:
        return epoch_scale(epoch + self.design.residual, self.config.epochs, self.config.s_max)

    def _reserve(self, embeddings: Sequence[Tensor], t: int, context: Context) -> None:
        """§3.2: what the masks select is never written again, and the generator grows by as much."""
        newly = self.generator.reserve(embeddings, t)
        classes = torch.tensor(self.scenario.new(t), device=self.device)
        labels = classes.repeat(math.ceil(CALIBRATION_IMAGES / len(classes)))
        self.generator.calibrate_batchnorm(self._noise(labels, context.generator), t, labels - classes[0])
        if t < self.scenario.tasks - 1:
            self._grow(t, newly, context)

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
        held = self.validation.export() if self.validation else {}
        return {**export(self.generator, self.discriminator), **self.memory.export(), **held}

    def load(self, state: State) -> None:
        layers = range(len(self.initial_widths))
        tasks = len({key.split(".")[1] for key in state if key.startswith("generator/tasks.")})
        self.generator = self._new_generator([state[f"generator/layers.{i}"].shape[1] for i in layers])
        for t in range(tasks):
            norms = [key for key in state if key.startswith(f"generator/tasks.{t}.norms.") and key.endswith(".weight")]
            widths = self.generator.Part.widths_of([len(state[key]) for key in sorted(norms)])
            shapes = self.generator.shapes(widths)
            self.generator.add_task(widths, len(self.scenario.new(t)))
            self.generator.keep([unpack_bits(state[f"masks/{t}.{i}"].to(self.device), shapes[i]) for i in layers])
        self.discriminator = self._new_discriminator(len(state["head/classes.weight"]))
        restore(self.generator, state)
        restore(self.discriminator, state)
        self.memory.load(state)
        if self.validation:
            self.validation.load(state)

    def replay(self, labels: Tensor, task: int, rng: torch.Generator) -> Tensor:
        """uint8 images [N, C, S, S] of classes `labels`, int64 [N], that an earlier `task` brought."""
        masks = self.generator.eval().masks[task]

        def made(labels_B: Tensor) -> Tensor:
            return ((self._made(labels_B, task, masks, rng) + 1) * 127.5).round().to(torch.uint8)

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

    def _predicted(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → int64 [N], the class head's."""
        predicted = in_batches(lambda batch: self.scores(batch.to(self.device))["head"].argmax(1), images)
        self.discriminator.train()
        return predicted

    @torch.no_grad()
    def _calibrate(self, pool: Tensor, rng: torch.Generator) -> None:
        """Set the discriminator's running statistics to those of a batch of `pool`, uint8 [N, C, S, S]."""
        some = torch.randperm(len(pool), device=self.device, generator=rng)[:CALIBRATION_IMAGES]
        with statistics_of_one_batch(self.discriminator):
            self.discriminator(signed(pool[some]))

    def _keep_exemplars(self, task: Task) -> None:
        """Real images for the bytes that the networks leave: old classes shrink to their share, new ones get theirs."""
        budget, seen = self.bounds.budget, self.scenario.seen(task.index)
        networks = export(self.generator, self.discriminator)
        ledger = ledger_of_state(networks, budget.storage, self.scenario.allowance)
        left_bytes = left_for_exemplars(budget, ledger.total(budget.accounting), seen)
        dropped = len(self.memory.classes) < self.scenario.new(task.index).start  # at an earlier boundary, for good
        if dropped or left_bytes // seen < self.memory.min_bytes:
            self.memory.classes = []
            return

        def encode(images: Tensor, labels: Tensor, limit_bytes: int) -> Encoded:
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

    def _grow(self, task: int, newly: Sequence[int], context: Context) -> None:
        """Expand after a task as far as the bytes allow. `newly`: mask entries that it reserved anew, by layer."""
        config, scenario, generator = self.config, self.scenario, self.generator
        widths = generator.widths
        wanted = grown_widths(generator.topology, config.z_dim, widths, newly, config.variant)
        got, clipped = affordable(self.bounds, scenario, config, generator.history, wanted)
        if clipped:
            names = [f"{what}_{i}" for what in ("wanted", "got") for i in range(len(wanted))]
            context.log({"event": "growth_clipped", "task": task, **dict(zip(names, [*wanted, *got], strict=True))})
        generator.grow(got)

    def _size(self, widths: Sequence[int]) -> int:
        """Of a generator, as λ is scaled by it: units, of the one for ImageNet parameters."""
        shapes = weight_shapes(self.generator.topology, self.config.z_dim, widths)
        return sum(map(math.prod, shapes)) if self.design.residual else sum(widths)

    def _class_weight(self, task: int) -> float:
        """Of the class loss in the generator's step: without it a task's classes are not told apart."""
        weight = self.config.generator_class_weight
        return float(len(self.scenario.new(task)) > 1) if weight is None else weight

    def _made(self, labels_B: Tensor, task: int, masks: Sequence[Tensor], rng: torch.Generator) -> Tensor:
        """Images [B, C, S, S] in [−1, 1] of a task's classes."""
        made: Tensor = self.generator(self._noise(labels_B, rng), task, masks, labels_B - self.scenario.new(task).start)
        return made

    def _adam(self, parameters: Iterable[Tensor]) -> torch.optim.Adam:
        lr, betas, cuda = self.config.lr, (self.config.beta1, 0.999), self.device.type == "cuda"
        return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True, capturable=cuda)

    def _new_generator(self, widths: Sequence[int]) -> MaskedGenerator:
        return self.design.generator(self.scenario, self.config, widths, self.device)

    def _new_discriminator(self, classes: int) -> AnyDiscriminator:
        return self.design.discriminator(self.scenario, classes, self.device)

    @torch.no_grad()
    def _next_discriminator(self, classes: int) -> AnyDiscriminator:
        """A new one, or where it lasts, the one before with rows for the new classes and a new critic."""
        net = self._new_discriminator(classes)
        if net.lasting and self._seen:
            known = self.discriminator.state_dict()
            for name, tensor in net.state_dict().items():
                counts_batches = not tensor.dim()  # nobody reads it
                if not counts_batches and not name.startswith("critic."):
                    tensor[: len(known[name])] = known[name]
        return net

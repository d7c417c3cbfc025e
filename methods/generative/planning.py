"""How large a generator and a solver fit a budget: arithmetic on shapes, no data."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from cilbench.budgets.layout import layout_of
from cilbench.budgets.ledger import Ledger
from cilbench.budgets.planning import Budget, BudgetTooSmall
from cilbench.budgets.sealed import State, ledger_of_state
from cilbench.budgets.shapes import shapes_alone
from cilbench.methods.contract import Plan, Scenario
from cilbench.methods.dgm.discriminator import Discriminator
from cilbench.methods.dgm.generator import Device
from cilbench.methods.dgm.planning import DISCRIMINATOR_SHARE, SMALLEST_D, largest_fitting, last_of, working_side
from cilbench.methods.generative.config import GenerativeConfig
from cilbench.methods.generative.networks import Generator, export_solver

Carried = Callable[[Generator, Discriminator], State]  # what a method seals of its networks


@dataclass(frozen=True)
class Widths:
    """g of the generator, d of the solver."""

    g: int
    d: int

    def generator(self, scenario: Scenario, config: GenerativeConfig, device: Device) -> Generator:
        return Generator(working_side(scenario), config.z_dim, self.g, scenario.image_shape[0], device)

    def discriminator(self, scenario: Scenario, classes: int, device: Device) -> Discriminator:
        return Discriminator(scenario.image_shape[0], working_side(scenario), self.d, classes, device)


def make_plan(key: str, budget: Budget, scenario: Scenario, config: GenerativeConfig, carried: Carried) -> Plan:
    """The widths that fill a budget, chosen as dgm's are: the state is the same after every task but for the head.

    The solver gets as wide as a quarter of the budget allows, then the generator as wide as fits, then the solver as
    wide as fits. The solver is the first to be narrow where the generator would not be `min_width` wide.

    Raises BudgetTooSmall.
    """

    def ledger(widths: Widths, seen: int) -> Ledger:
        with shapes_alone():
            networks = widths.generator(scenario, config, "meta"), widths.discriminator(scenario, seen, "meta")
        return ledger_of_state(carried(*networks), budget.storage, scenario.allowance)

    def total(widths: Widths) -> int:
        return ledger(widths, scenario.classes).total(budget.accounting)

    def fits(widths: Widths) -> bool:
        return total(widths) <= budget.bytes

    def suits(d: int) -> bool:
        with shapes_alone():
            solver = replace(smallest, d=d).discriminator(scenario, scenario.classes, "meta")
        solver_bytes = ledger_of_state(export_solver(solver), budget.storage).total(budget.accounting)
        return solver_bytes <= budget.bytes * DISCRIMINATOR_SHARE and fits(Widths(roomy, d))

    smallest = Widths(config.width or 1, min(SMALLEST_D, config.d))
    if not fits(smallest):
        what = f"a generator of width {smallest.g}, d {smallest.d}"
        raise BudgetTooSmall(key, budget.bytes, total(smallest), what)
    roomy, candidates = config.width or config.min_width, range(smallest.d, config.d + 1)
    widths = replace(smallest, d=last_of(candidates, suits))
    if config.width is None:
        widths = replace(widths, g=largest_fitting(lambda g: fits(replace(widths, g=g))))
    widths = replace(widths, d=last_of(range(widths.d, config.d + 1), lambda d: fits(replace(widths, d=d))))

    ledgers = [ledger(widths, scenario.seen(t)) for t in range(scenario.tasks)]
    return Plan(
        budget=budget,
        backbone=f"dcgan-g{widths.g}-d{widths.d}",
        exemplars=0,
        exemplar_bytes=(0,) * scenario.tasks,
        model_bytes=ledgers[-1].total(budget.accounting),
        published_bytes=tuple(one.published for one in ledgers),
        strict_bytes=tuple(one.strict for one in ledgers),
        layout=layout_of(ledgers),
        details={"width": widths.g, "d": widths.d},
    )


def planned(plan: Plan) -> Widths:
    return Widths(plan.details["width"], plan.details["d"])

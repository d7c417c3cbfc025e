"""What a backbone started from, as a record names it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Weights(BaseModel):
    """`free` ones are not charged, and never to be taken for any that are: every text says which these are."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    cost: Literal["charged", "free"]

    @property
    def short(self) -> str:
        return self.sha256[:8]

    @property
    def name(self) -> str:
        """`weights 1a2b3c4d`, or `free weights 1a2b3c4d`."""
        return f"{'free ' * (self.cost == 'free')}weights {self.short}"

    @property
    def text(self) -> str:
        """A line of its own."""
        how = "charged in full" if self.cost == "charged" else "FREE: not charged, identified by its public checksum"
        kept = "frozen " * (self.cost == "free")
        return f"{kept}backbone from weights (SHA-256 {self.sha256[:12]}), {how}"

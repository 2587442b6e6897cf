"""What a sweep file may say: one run, many times, with other values."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cryoformer_dist.config.cluster import WorkersConfig
from cryoformer_dist.config.plain_values import PlainValues
from cryoformer_dist.config.section import PositiveInt, Section

Scalar = bool | int | float | str | None
Metric = Literal["difference_map_correlation", "auc_gap", "fsc_area_own", "resolution_angstrom", "loss"]
DIRECTIONS = {metric: "min" if metric in ("resolution_angstrom", "loss") else "max" for metric in get_args(Metric)}
"""Measures that trials are ranked by, and whether the largest or the smallest is best."""

# What may change between two steps of a training: nothing that weights, tables or the order of particles depend on.
_MUTABLE = ("training.learning_rates.", "training.weight_decay", "training.gradient_clipping", "model.latent.prior")
# All trials read one store; where they go, the sweep says.
_NOT_SWEPT = {
    "training.seed": "write `seeds: [...]` instead",
    "name": "trials are named for their values",
    "dataset.store": "all trials read one store",
    "dataset.simulate": "all trials read one store",
}


class Values(Section):
    """What a parameter may be: exactly one of four."""

    grid: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = Field(
        None, description="each of these, crossed with the other grids"
    )
    choice: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = Field(
        None, description="one of these, at random"
    )
    uniform: tuple[float, float] | None = Field(None, description="[least, most]")
    loguniform: tuple[float, float] | None = Field(None, description="[least, most], even on a logarithmic scale")

    @field_validator("uniform", "loguniform")
    @classmethod
    def _ordered(cls, ends: tuple[float, float] | None, info: ValidationInfo) -> tuple[float, float] | None:
        if ends is not None and not ends[0] < ends[1]:
            raise ValueError(f"[{ends[0]:g}, {ends[1]:g}]: write the smaller end first")
        if ends is not None and info.field_name == "loguniform" and ends[0] <= 0:
            raise ValueError(f"[{ends[0]:g}, {ends[1]:g}]: a logarithmic scale begins above 0; take uniform")
        return ends

    @model_validator(mode="after")
    def _one(self) -> "Values":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("write one of grid: [...], choice: [...], uniform: [a, b], loguniform: [a, b]")
        return self

    @property
    def random(self) -> bool:
        """Whether values are drawn; else each is taken in turn."""
        return self.grid is None

    @property
    def examples(self) -> tuple[Scalar, ...]:
        """Every value of a list, both ends of a range: what must pass the run schema."""
        found: tuple[Scalar, ...] | None = self.grid or self.choice or self.uniform or self.loguniform
        assert found is not None
        return found


def _refuse_barred(keys: Iterable[str]) -> None:
    mistakes = [
        f"{key}: {reason}"
        for key in keys
        for barred, reason in _NOT_SWEPT.items()
        if key == barred or key.startswith(f"{barred}.")
    ]
    if mistakes:
        raise ValueError("; ".join(mistakes))


class SchedulerConfig(Section):
    """Who ends bad trials before their last epoch."""

    kind: Literal["none", "asha", "median", "pbt"] = Field(
        "none",
        description="asha: after grace_epochs, and at every multiple by `reduction`, only the best 1/reduction go on; "
        "median: those below the median end; pbt: the worst take over weights and values of the best, varied",
    )
    grace_epochs: PositiveInt = Field(1, description="epochs that every trial gets; pbt: epochs between two takeovers")
    reduction: float = Field(3.0, gt=1, description="asha only")


class SweepConfig(Section):
    """Many runs of one run file, ranked."""

    name: str = Field(
        "sweep", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder name under the storage path"
    )
    run: str = Field(description="run file that all trials start from; relative to this file")
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = Field(
        (0,), description="every setting is trained with each of these as training.seed"
    )
    variants: dict[str, PlainValues] = Field(
        {}, description="ablations: a name, and dotted.key: value of what is other than in the first, the full model"
    )
    parameters: dict[str, Values] = Field({}, description="dotted.key of the run file: the values it takes")
    samples: PositiveInt = Field(1, description="draws of the parameters that are drawn; optuna: trials in all")
    search: Literal["random", "optuna"] = Field(
        "random", description="optuna: values are proposed from what the trials before them came to"
    )
    scheduler: SchedulerConfig = SchedulerConfig()
    metric: Metric = Field(
        "difference_map_correlation",
        description="what trials are ranked by; all but loss need a truth. resolution_angstrom: median over the states "
        "at FSC 0.5, the smaller the better",
    )
    workers: WorkersConfig = Field(WorkersConfig(), description="of one trial")
    concurrent: PositiveInt | None = Field(None, description="trials at a time; as many as fit when left out")
    storage: str = Field("runs", description="where the sweep's folder goes; relative to this file")
    max_failures: int = Field(2, ge=0, description="lost processes a trial survives before it counts as failed")

    @field_validator("scheduler", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """``scheduler: asha`` for its defaults."""
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands there twice: the two trials would be the same")
        return seeds

    @field_validator("variants")
    @classmethod
    def _variants_may_be_swept(cls, variants: dict[str, PlainValues]) -> dict[str, PlainValues]:
        _refuse_barred(key for changes in variants.values() for key in changes)
        return variants

    @field_validator("parameters")
    @classmethod
    def _parameters_may_be_swept(cls, parameters: dict[str, Values]) -> dict[str, Values]:
        _refuse_barred(parameters)
        return parameters

    @field_validator("workers")
    @classmethod
    def _fixed(cls, workers: WorkersConfig) -> WorkersConfig:
        if workers.elastic:
            raise ValueError(f"count: {workers.count}: trials that grow take each other's place; write a number")
        return workers

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepConfig":
        mistakes = []
        drawn = [key for key, values in self.parameters.items() if values.random]
        twice = sorted({key for keys in self.variants.values() for key in keys} & set(self.parameters))
        if twice:
            mistakes.append(f"{', '.join(twice)}: stands in variants and in parameters")
        if self.samples > 1 and not drawn:
            mistakes.append("samples: no parameter is drawn (choice, uniform, loguniform); leave it out")
        if self.search == "optuna":
            mistakes += self._unfit_for_optuna(drawn)
        if self.scheduler.kind == "pbt":
            fixed = [key for key in self.parameters if not key.startswith(_MUTABLE)]
            if fixed or not self.parameters:
                named = f"{', '.join(fixed)} cannot change" if fixed else "there is none"
                mistakes.append(f"scheduler: pbt changes parameters while it trains, and {named}; {_MUTABLE} can")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def _unfit_for_optuna(self, drawn: list[str]) -> list[str]:
        mistakes = []
        if not drawn or len(drawn) < len(self.parameters):
            mistakes.append("search: optuna needs parameters, each with choice, uniform or loguniform, not grid")
        if self.variants or len(self.seeds) > 1:
            mistakes.append("search: optuna takes no variants and one seed: it learns from one trial after another")
        if self.scheduler.kind == "pbt":
            mistakes.append("search: optuna and scheduler: pbt would both choose values; take one")
        return mistakes

    @property
    def direction(self) -> str:
        """``max`` or ``min``: which end of the metric is best."""
        return DIRECTIONS[self.metric]

"""Learnable numbers that belong to single particles: latents and poses.

Every rank holds the whole table. A step touches few rows; the ranks exchange only those rows' gradients and apply the
same row-wise Adam, so tables stay equal everywhere and a restart at another world size needs nothing special.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FIRST_DECAY, _SECOND_DECAY, _EPSILON = 0.5, 0.9, 1e-12


class RowTable:
    """A table of learnable rows under row-wise Adam.

    A row's moments and its bias correction count that row's own visits: a particle seen once per epoch is not moved
    between visits, as dense Adam would.

    Parameters
    ----------
    values
        ``(rows, width)`` at the start.
    """

    def __init__(self, values: Float[Tensor, "rows width"]) -> None:
        self.values = values.clone()
        self._first = torch.zeros_like(self.values)
        self._second = torch.zeros_like(self.values)
        self._visits = torch.zeros(len(values), dtype=torch.int32, device=values.device)

    def read(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """A leaf copy of some rows, ready to collect their gradient."""
        return self.values[rows].requires_grad_(True)

    def update(
        self,
        rows: Int[Tensor, " batch"],
        gradient: Float[Tensor, "batch width"],
        learning_rate: float,
        stopped: Tensor | None = None,
    ) -> None:
        """One Adam step of some rows; the gradient's scale does not matter, its history does.

        A row that comes twice, from the end of one epoch and the beginning of the next, is one visit with both
        gradients: both of its writings say the same. At a ``stopped`` of 1 nothing moves, whatever the gradient.
        """
        rows, order, number = _sorted(rows)
        gradient = torch.zeros_like(gradient).index_add_(0, number, gradient[order])[number]
        visits = self._visits[rows] + 1
        first = torch.lerp(gradient, self._first[rows], _FIRST_DECAY)
        second = torch.lerp(gradient.square(), self._second[rows], _SECOND_DECAY)
        unbias_first = 1 - _FIRST_DECAY ** visits[:, None]
        unbias_second = 1 - _SECOND_DECAY ** visits[:, None]
        step = (first / unbias_first) / ((second / unbias_second).sqrt() + _EPSILON)
        values = self.values[rows] - learning_rate * step
        found = ((self._visits, visits), (self._first, first), (self._second, second), (self.values, values))
        for kept, new in found:
            kept[rows] = new if stopped is None else torch.where(stopped > 0, kept[rows], new)

    def write(self, rows: Int[Tensor, " batch"], values: Float[Tensor, "batch width"]) -> None:
        """Set rows. Of one that comes several times the first counts: a GPU would keep any, each rank another."""
        rows, order, number = _sorted(rows)
        first = torch.searchsorted(number, number)
        self.values[rows] = values[order][first]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs to go on exactly."""
        return {"values": self.values, "first": self._first, "second": self._second, "visits": self._visits}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over a saved table.

        Raises
        ------
        ValueError
            If the saved table has another shape: it belongs to another store or model.
        """
        if state["values"].shape != self.values.shape:
            raise ValueError(
                f"saved table is {tuple(state['values'].shape)}, this run needs {tuple(self.values.shape)}"
            )
        device = self.values.device
        self.values, self._first = state["values"].to(device), state["first"].to(device)
        self._second, self._visits = state["second"].to(device), state["visits"].to(device)


def _sorted(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in ascending order, where each stood, and its number among those that differ.

    Not `torch.unique`: how many differ is known on a GPU only, and would have to be waited for.
    """
    rows, order = torch.sort(rows, stable=True)
    number = torch.nn.functional.pad(rows[1:] != rows[:-1], (1, 0)).cumsum(0)
    return rows, order, number

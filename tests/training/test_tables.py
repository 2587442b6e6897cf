import pytest
import torch

from cryoformer_dist.training.tables import RowTable

FIRST_DECAY, SECOND_DECAY = 0.5, 0.9


def _table(rows: int = 6, width: int = 3) -> RowTable:
    return RowTable(torch.randn(rows, width, generator=torch.Generator().manual_seed(0)))


def _gradient(rows: int, seed: int, width: int = 3) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_a_table_is_its_own_copy() -> None:
    values = torch.ones(2, 3)
    table = RowTable(values)
    table.update(torch.tensor([0]), torch.ones(1, 3), 0.1)
    assert torch.equal(values, torch.ones(2, 3))


def test_read_rows_collect_a_gradient_and_leave_the_table_alone() -> None:
    table = _table()
    before = table.values.clone()
    leaf = table.read(torch.tensor([4, 1]))
    (leaf.square().sum() / 2).backward()
    assert torch.equal(leaf.grad, before[[4, 1]])
    assert torch.equal(table.values, before)
    assert not table.values.requires_grad


def test_only_touched_rows_move() -> None:
    table = _table()
    before = table.values.clone()
    table.update(torch.tensor([1, 4]), _gradient(2, 1), 0.1)
    moved = (table.values != before).any(-1)
    assert moved.tolist() == [False, True, False, False, True, False]
    # Momentum must not carry a row on while it is not seen.
    after = table.values.clone()
    table.update(torch.tensor([0]), _gradient(1, 2), 0.1)
    assert torch.equal(table.values[1:], after[1:])


def test_a_row_moves_as_adam_computed_by_hand() -> None:
    table = RowTable(torch.tensor([[1.0, -2.0], [0.0, 0.0]], dtype=torch.float64))
    gradients = [torch.tensor([0.5, -1.0]), torch.tensor([-0.25, -3.0]), torch.tensor([2.0, 0.125])]
    value = torch.tensor([1.0, -2.0], dtype=torch.float64)
    first = second = torch.zeros(2, dtype=torch.float64)
    for visit, gradient in enumerate(gradients, start=1):
        table.update(torch.tensor([0]), gradient.double()[None], 0.1)
        first = FIRST_DECAY * first + (1 - FIRST_DECAY) * gradient
        second = SECOND_DECAY * second + (1 - SECOND_DECAY) * gradient**2
        value = value - 0.1 * (first / (1 - FIRST_DECAY**visit)) / (second / (1 - SECOND_DECAY**visit)).sqrt()
        torch.testing.assert_close(table.values[0], value)


def test_the_first_step_is_the_learning_rate_against_the_sign_whatever_the_gradient_s_scale() -> None:
    for scale in (1e-6, 1.0, 1e4):
        table = RowTable(torch.zeros(1, 3))
        table.update(torch.tensor([0]), scale * torch.tensor([[1.0, -2.0, 3.0]]), 0.1)
        torch.testing.assert_close(table.values, torch.tensor([[-0.1, 0.1, -0.1]]), rtol=1e-4, atol=0)


def test_a_row_does_not_feel_who_shares_its_batch() -> None:
    together, alone = _table(), _table()
    for seed in range(4):
        gradient = _gradient(3, seed)
        together.update(torch.tensor([5, 2, 0]), gradient, 0.1)
        alone.update(torch.tensor([2]), gradient[1:2], 0.1)
    assert torch.equal(together.values[2], alone.values[2])


def test_the_order_of_rows_in_a_batch_is_of_no_consequence() -> None:
    one, other = _table(), _table()
    gradient = _gradient(3, 1)
    one.update(torch.tensor([5, 2, 0]), gradient, 0.1)
    other.update(torch.tensor([0, 5, 2]), gradient[[2, 0, 1]], 0.1)
    assert torch.equal(one.values, other.values)


def test_a_row_that_comes_twice_is_one_visit_with_both_gradients() -> None:
    twice, once = _table(), _table()
    gradient = _gradient(3, 1)
    twice.update(torch.tensor([2, 4, 2]), gradient, 0.1)
    once.update(torch.tensor([2, 4]), torch.stack([gradient[0] + gradient[2], gradient[1]]), 0.1)
    for name, value in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], value), name


def test_learning_rate_zero_leaves_values_and_keeps_history() -> None:
    table = _table()
    before = table.values.clone()
    table.update(torch.tensor([1]), _gradient(1, 1), 0.0)
    assert torch.equal(table.values, before)
    assert table.state_dict()["visits"].tolist() == [0, 1, 0, 0, 0, 0]


def test_a_saved_table_goes_on_bit_equal() -> None:
    table, resumed = _table(), RowTable(torch.zeros(6, 3))
    for seed in range(3):
        table.update(torch.tensor([1, 3]), _gradient(2, seed), 0.1)
    resumed.load_state_dict({name: value.clone() for name, value in table.state_dict().items()})
    for one in (table, resumed):
        one.update(torch.tensor([3, 0]), _gradient(2, 9), 0.1)
    for name, value in table.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_table_of_another_shape_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(6, 3\)"):
        _table().load_state_dict(_table(rows=5).state_dict())


def test_a_table_that_is_stopped_stays_as_it_is_whatever_the_gradient() -> None:
    stopped, undisturbed = _table(), _table()
    rows = torch.tensor([1, 4])
    for table in (stopped, undisturbed):
        table.update(rows, _gradient(2, 1), 0.1, torch.zeros(()))
    stopped.update(rows, torch.full((2, 3), torch.nan), 0.1, torch.ones(()))
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(stopped.state_dict()[name], value), name


def test_of_a_row_that_is_written_twice_the_first_value_counts_and_all_its_writings_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, values = _table(), _gradient(5, 1)
    before, written = table.values.clone(), []
    original = torch.Tensor.__setitem__

    def keep(tensor: torch.Tensor, rows: torch.Tensor, found: torch.Tensor) -> None:
        written.append((rows, found))
        original(tensor, rows, found)

    monkeypatch.setattr(torch.Tensor, "__setitem__", keep)
    table.write(torch.tensor([3, 5, 0, 3, 5]), values)
    assert torch.equal(table.values[[0, 3, 5]], values[[2, 0, 1]])
    assert torch.equal(table.values[[1, 2, 4]], before[[1, 2, 4]])
    # Whichever of several writings of a row a GPU keeps.
    ((rows, found),) = written
    for row, value in zip(rows.tolist(), found, strict=True):
        assert torch.equal(value, table.values[row])

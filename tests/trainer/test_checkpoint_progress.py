"""When a phase ends, and when training does."""

import pytest

from trainer.runs.checkpoint import Progress


def run(losses: list[float], epochs: int, head_epochs: int, patience: int) -> Progress:
    """Goes through epochs of these validation losses until training stops."""
    progress = Progress(thawed=None if head_epochs else 0)
    for loss in losses:
        progress.end_epoch({"val_loss": loss}, head_epochs, patience)
        if progress.stopped:
            break
    return progress


def test_it_stops_after_so_many_epochs_without_a_better_loss() -> None:
    progress = run([5, 4, 4, 4.5, 3, 3.1, 3.0, 3.2, 1], 9, 0, 3)
    assert (progress.epoch, progress.stopped) == (8, True)
    assert progress.best_loss == 3


def test_without_patience_it_never_stops() -> None:
    assert not run([1, 2, 3, 4, 5, 6], 6, 0, 0).stopped


def test_a_better_loss_begins_the_count_anew() -> None:
    progress = run([5, 6, 4, 6, 3, 6], 6, 0, 2)
    assert (progress.stopped, progress.since_best) == (False, 1)


def test_a_head_that_gets_no_better_gives_way_to_the_whole_network() -> None:
    progress = run([5, 5, 5], 10, 6, 2)
    assert (progress.thawed, progress.stopped, progress.since_best) == (3, False, 0)
    assert progress.begins_phase()


def test_the_head_is_trained_for_its_epochs() -> None:
    progress = run([5, 4], 10, 3, 2)
    assert progress.thawed is None
    progress.end_epoch({"val_loss": 3.0}, 3, 2)
    assert progress.thawed == 3


def test_the_whole_network_has_a_count_of_its_own() -> None:
    # The head's epoch 2 is the best; the network's losses fall slowly, from above.
    losses = [5, 2, 2.5, 9, 8, 7, 6, 5, 4.5]
    progress = run(losses, 9, 3, 2)
    assert (progress.epoch, progress.stopped) == (9, False)
    assert progress.best_loss == 2
    progress.end_epoch({"val_loss": 4.6}, 3, 2)
    assert not progress.stopped
    progress.end_epoch({"val_loss": 4.7}, 3, 2)
    assert progress.stopped


def test_only_the_lowest_loss_of_all_is_worth_keeping() -> None:
    progress = Progress(thawed=None)
    found = [progress.end_epoch({"val_loss": loss}, 1, 0) for loss in (3.0, 5.0, 4.0, 2.0, 2.0)]
    assert found == [True, False, False, True, False]


@pytest.mark.parametrize("step", [0, 1])
def test_a_phase_begins_with_its_first_step(step: int) -> None:
    progress = run([5], 3, 1, 0)
    progress.step = step
    assert progress.begins_phase() == (step == 0)
    progress.end_epoch({"val_loss": 4.0}, 1, 0)
    assert not progress.begins_phase()

import numpy as np

from trainer.networks.windows import ApplyWindows


def stored(*hounsfield: float) -> np.ndarray:
    """Stored values, [1, N, 1, 1], of an offset of -1024."""
    return (np.array(hounsfield) + 1024).astype(np.uint16).reshape(1, -1, 1, 1)


def layer(jitter: float = 0.0) -> ApplyWindows:
    return ApplyWindows([40, 600], [80, 2800], hu_offset=-1024, jitter=jitter, seed=0)


def test_linear_exact_by_hand() -> None:
    # Brain 40/80: (x / 80) * 255; bone 600/2800: ((x - 600) / 2800 + 0.5) * 255.
    levels = np.asarray(layer()(stored(-1024, 0, 40, 80, 3000)))
    assert levels.shape == (1, 5, 1, 2)
    assert levels.dtype == np.float32
    np.testing.assert_allclose(levels[0, :, 0, 0], [0, 0, 127.5, 255, 255], atol=1e-3)
    np.testing.assert_allclose(levels[0, 2, 0, 1], (0.5 - 0.2) * 255, atol=1e-3)


def test_jitter_moves_windows_while_training_alone() -> None:
    jittered = layer(jitter=0.1)
    still = np.asarray(layer()(stored(30, 50)))
    assert np.array_equal(np.asarray(jittered(stored(30, 50), training=False)), still)
    moved = np.asarray(jittered(stored(30, 50), training=True))
    assert not np.allclose(moved, still)
    assert np.all(np.abs(moved - still) < 60)

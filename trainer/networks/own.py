"""Networks of whoever trains, from a function of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from headct.errors import UsageError

Builder = Callable[[tuple[int, int, int]], Any]
OWN_NORMALIZATION = "tf"  # gray levels from -1 to 1


def build_own(builder: Builder, name: str, shape: tuple[int, int, int]) -> Any:
    """Calls a function that makes a backbone, and checks what it made.

    Args:
        builder: (S, S, C) → keras.Model, float32 [B, S, S, C] from -1 to 1 → features [B, h, w, D]
            or [B, D].
        name: of the function.
        shape: to call it with.

    Raises:
        UsageError: it is no such model, or could not be loaded again once it is saved.
    """
    network = builder(shape)
    wanted = f"want a keras.Model from {[None, *shape]} to features [B, h, w, D] or [B, D]"
    if not isinstance(network, keras.Model):
        raise UsageError(f"--model {name}: made {type(network).__name__}; {wanted}")
    inputs, outputs = (getattr(network, each, None) for each in ("input_shape", "output_shape"))
    if inputs != (None, *shape) or not isinstance(outputs, tuple) or len(outputs) not in (2, 4):
        raise UsageError(f"--model {name}: made a model from {inputs} to {outputs}; {wanted}")
    try:
        saved = keras.saving.serialize_keras_object(network)
        keras.saving.deserialize_keras_object(saved, safe_mode=True)
    except (ValueError, TypeError, AttributeError, ImportError, NotImplementedError) as error:
        told = str(error).strip().splitlines()[0]
        raise UsageError(f"--model {name}: could not be loaded once it is saved ({told})") from None
    network.name = "backbone"
    return network

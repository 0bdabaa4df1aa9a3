"""Sample pictures, to warm up, check and measure pipelines."""

from collections.abc import Iterator, Sequence

from app.modes.catalogue import MODES
from app.pipelines.base import GenerationParams, LoadedPipelines, Mode


def sample_pictures(
    mode: Mode, size: tuple[int, int], count: int, *, prompt: str = "a red circle on a blue background"
) -> list[GenerationParams]:
    """Return pictures that take one step, with a different prompt and seed each."""
    return [MODES[mode].sample(size, prompt=f"{prompt} {seed}", seed=seed) for seed in range(count)]


def warm_up_batches(loaded: LoadedPipelines, sizes: Sequence[tuple[int, int]]) -> Iterator[list[GenerationParams]]:
    """Yield the batches of the warm-up: for each size, each of the loader's batch sizes and each mode.

    If first calls are slow, the last batch is a measurement. Its prompt is new, as known prompts are not encoded again.
    """
    for size in sizes:
        for pictures in loaded.warm_up_batches:
            for mode in Mode:
                yield sample_pictures(mode, size, pictures, prompt="warm-up")
    if loaded.first_call_is_slow:
        for size in sizes[:1]:
            yield sample_pictures(Mode.TXT2IMG, size, 1, prompt="measured")

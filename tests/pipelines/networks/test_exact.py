"""In an exact batch every sample has the bits that it has alone, whatever the libraries do."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from app.pipelines.networks import exact
from app.pipelines.networks.cpu import fit_to_cpu
from app.pipelines.networks.exact import ExactBatches, exact_in_batches

CHANCE = torch.Generator().manual_seed(0)


class Linear:
    """A product that is off by a little in a batch, as a library's other kernel is, and counts the samples it gets."""

    def __init__(self, error: float) -> None:
        self.error = error
        self.calls: list[int] = []

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        self.calls.append(len(x))
        return F.linear(x, weight) + (self.error if len(x) > 1 else 0)


def count_by_sample(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows with each operation that is computed by sample."""
    seen: list[Any] = []
    by_sample = exact.by_sample

    def count(*arguments: Any) -> Tensor:
        seen.append(arguments)
        return by_sample(*arguments)

    monkeypatch.setattr(exact, "by_sample", count)
    return seen


def whole_numbers(*shape: int) -> Tensor:
    """Numbers whose sums no processor rounds, in any order."""
    return torch.randint(-9, 10, shape, generator=CHANCE).float()


def run(linear: Callable[[Tensor, Tensor], Tensor], x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Call a product three times in one exact context."""
    weight = torch.ones(3, x.shape[-1])
    monkeypatch.setattr(exact, "COMPARED", {linear})
    mode = ExactBatches()
    return [mode.__torch_function__(linear, (), (x, weight)) for _ in range(3)]


def test_a_product_that_rounds_otherwise_in_a_batch_is_computed_by_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = Linear(error=1e-3), whole_numbers(3, 4, 5)
    results = run(linear, x, monkeypatch)
    assert linear.calls == [3, *([1] * 9)], "compared once"
    for result in results:
        assert torch.equal(result, F.linear(x, torch.ones(3, 5)))


def test_a_product_that_rounds_alike_is_computed_at_once_after_one_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = Linear(error=0), whole_numbers(3, 4, 5)
    run(linear, x, monkeypatch)
    assert linear.calls == [3, 1, 1, 1, 3, 3]


def test_in_16_bits_one_row_a_sample_has_the_bits_that_it_has_alone_whatever_the_first_comparison_says() -> None:
    """As SDXL's embedding of time: on a CPU with AMX, a quarter of such results differ in a batch, by one value."""
    weight = torch.randn(1280, 1280, generator=CHANCE).to(torch.bfloat16) / 36
    linear = F.linear
    with ExactBatches():
        for _ in range(100):
            x = torch.randn(2, 1280, generator=CHANCE).to(torch.bfloat16)
            together = linear(x, weight)
            assert torch.equal(together, torch.cat([linear(x[:1], weight), linear(x[1:], weight)]))


def test_only_a_large_result_in_16_bits_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (Linear(error=0) for _ in range(2))
    for linear, rows in ((small, 1), (large, 1 << 15)):
        weight, x = torch.ones(3, 5, dtype=torch.bfloat16), torch.ones(3, rows, 5, dtype=torch.bfloat16)
        monkeypatch.setattr(exact, "COMPARED", {linear})
        mode = ExactBatches()
        for _ in range(2):
            mode.__torch_function__(linear, (), (x, weight))
    assert small.calls == [3, *([1] * 6)]
    assert large.calls == [3, 1, 1, 1, 3]


def test_each_layer_shape_layout_and_number_of_threads_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may choose another kernel for each."""
    seen = count_by_sample(monkeypatch)
    convolve, weight = F.conv2d, torch.ones(2, 4, 1, 1)
    x = torch.randn(2, 4, 6, 6, generator=CHANCE)
    before = torch.get_num_threads()
    with ExactBatches():
        for other in (x, x[..., :5], x.to(memory_format=torch.channels_last), torch.cat([x, x])):
            for _ in range(2):
                convolve(other, weight)
        convolve(x, weight.clone())
        try:
            torch.set_num_threads(3)
            convolve(x, weight)
        finally:
            torch.set_num_threads(before)
    assert len(seen) == 6


@pytest.mark.parametrize("function", sorted(exact.BY_SAMPLE, key=repr))
def test_functions_that_end_their_vectors_otherwise_are_always_computed_by_sample(
    function: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = count_by_sample(monkeypatch)
    x = torch.randn(3, 4, 5, 7, generator=CHANCE)
    samples = exact.BY_SAMPLE[function]
    arguments = (*[x] * samples, *([2] if function is F.group_norm else []))
    alone = torch.cat([function(*[x[i : i + 1]] * samples, *arguments[samples:]) for i in range(len(x))])
    with ExactBatches():
        assert all(torch.equal(function(*arguments), alone) for _ in range(2))
    assert len(seen) == 2


def test_a_single_sample_is_computed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what comes alone costs nothing, and is what batches are compared with."""
    seen = count_by_sample(monkeypatch)
    predict = exact_in_batches(lambda latents, _: F.silu(latents))
    predict(torch.ones(1, 2), torch.tensor(1.0))
    assert not seen
    predict(torch.ones(2, 2), torch.tensor(1.0))
    assert seen


def test_a_first_batch_with_a_picture_that_fails_says_nothing_about_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = Linear(error=0), whole_numbers(3, 4, 5)
    x[2, 0, 0] = torch.nan
    run(linear, x, monkeypatch)
    assert linear.calls == [3, 1, 1, 1] * 3, "compared each time, until there is a result"


def test_a_first_batch_with_a_picture_that_fails_leaves_the_shape_to_the_next() -> None:
    given: list[int] = []

    def predict(latents: Tensor, _: Tensor) -> Tensor:
        given.append(len(latents))
        return latents * 2

    latents = torch.randn(2, 4, generator=CHANCE)
    latents[1, 0] = torch.nan
    exact_predict = exact_in_batches(predict)
    exact_predict(latents, torch.tensor(1.0))
    given.clear()
    for _ in range(2):
        exact_predict(torch.ones(2, 4), torch.tensor(1.0))
    assert given == [2, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wide_network_that_was_fitted_to_the_cpu_gives_each_sample_the_bits_that_it_has_alone(
    dtype: torch.dtype,
) -> None:
    """At SDXL-Turbo's widths the results are large enough to tell in 16 bits, and the upsampling is folded."""
    layers: Any = nn.Sequential(
        ResnetBlock2D(in_channels=256, temb_channels=None), Upsample2D(256, use_conv=True), nn.Conv2d(256, 128, 3)
    )
    layers.config = SimpleNamespace(block_out_channels=(256,))
    fit_to_cpu(SimpleNamespace(unet=layers.to(dtype).eval(), vae=nn.Identity()))
    predict = exact_in_batches(lambda latents, _: layers(latents))
    for samples in (2, 3, 3):
        x = torch.randn(samples, 256, 12, 10, generator=CHANCE).to(dtype)
        with torch.inference_mode():
            together = predict(x, torch.tensor(1.0))
            assert torch.equal(together, torch.cat([layers(one) for one in torch.split(x, 1)]))


@pytest.mark.parametrize("error", [0.0, 1e-6])
def test_the_first_batch_of_a_shape_shows_whether_anything_else_rounds_otherwise(error: float) -> None:
    """Then samples of this shape are computed one by one, with the conditions that belong to each."""
    given: list[int] = []

    def predict(latents: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        given.append(len(latents))
        return latents * timestep + condition + error * (len(latents) - 1)

    latents, condition = torch.randn(3, 4, generator=CHANCE), torch.randn(3, 4, generator=CHANCE)
    exact_predict = exact_in_batches(predict)
    for _ in range(2):
        assert torch.equal(exact_predict(latents, torch.tensor(2.0), condition), latents * 2 + condition)
    assert given == ([3, 1, 3] if error == 0 else [3, 1, 1, 1, 1, 1, 1, 1])
    exact_predict(latents[:2], torch.tensor(2.0), condition[:2])
    assert given[-2:] == [2, 1] if error == 0 else given[-4:] == [2, 1, 1, 1]

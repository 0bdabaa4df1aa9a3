"""Training examples of the UNet: noisy latents, captions, and target latents.

There are three kinds of examples. *First* examples are pure noise at the last timestep, as text to image begins.
*Edits* are another drawing under less noise, as image to image begins; attributes in the caption change, others stay.
*Refinements* are the model's own pictures under less noise, the input of the second and later steps.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from training.captions import caption_of
from training.latents import LAST, SIGMAS, codes_of, scene_latents, sketch_latents
from training.scenes import (
    BACKGROUND,
    COLOUR,
    COLOURS,
    NO_CODES,
    Layout,
    Scene,
    edited,
    layout_of,
    pair_layouts,
    random_codes,
    random_layout,
    random_scene,
)

# The timesteps of 1 to 4 trailing steps, each as often as it is likely.
_TIMESTEPS = (749, 749, 666, 499, 499, 499, 499, 333, 249, 249, 249)
# The last timesteps of 4, 3 and 2 steps, which make the visible picture.
_FINAL = (249, 249, 333, 499)
# From this timestep on, a caption may also move and resize the object.
_KEEPS_LAYOUT = 600
# The share of edits that begin from a sketch.
_SKETCHED = 0.3
# Latent height and width.
_USUAL, _SMALL = (64, 64), (32, 32)
_OTHERS = ((96, 64), (64, 96), (96, 96), (96, 96), (96, 96), (64, 48), (48, 48), (80, 80))


@dataclass(frozen=True)
class Batch:
    """Examples: the UNet gets base + sigma * noise, (B, 4, h, w), at `timesteps` (B,), and should return `targets`."""

    base: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    targets: torch.Tensor
    captions: list[str]

    def __add__(self, other: "Batch") -> "Batch":
        joined = {
            f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)])
            for f in fields(self)
            if f.name != "captions"
        }
        return Batch(**joined, captions=self.captions + other.captions)

    def __getitem__(self, rows: slice) -> "Batch":
        return Batch(*(getattr(self, f.name)[rows] for f in fields(self)))

    def __len__(self) -> int:
        return len(self.captions)


def random_size(rng: random.Random, share: float) -> tuple[int, int]:
    """Return a random latent size; `share` is the progress. Small ones are cheap, so they are frequent at first."""
    small = 0.7 if share < 0.25 else 0.2
    others = 0.05 if share < 0.25 else 0.3
    return rng.choices((_SMALL, _USUAL, rng.choice(_OTHERS)), (small, 1 - small - others, others))[0]


def first_examples(rng: random.Random, count: int, size: tuple[int, int]) -> Batch:
    """Make examples of the first step from pure noise. A fifth of them also contains an uploaded picture.

    The picture is as strong as at image to image with full strength, and changes the codes.
    """
    height, width = 8 * size[0], 8 * size[1]
    base, noises, targets, captions = [], [], [], []
    for _ in range(count):
        noise = torch.randn(4, *size)
        scene = _practice(rng)
        start = _any_latents(rng, width, height) if rng.random() < 0.2 else torch.zeros(4, *size)
        targets.append(scene_latents(scene, codes_of(noise + start / SIGMAS[LAST]), width=width, height=height))
        captions.append(caption_of(scene, rng))
        noises.append(noise)
        base.append(start)
    return _batch(base, noises, [LAST] * count, targets, captions)


def _practice(rng: random.Random) -> Scene:
    """Return a random scene. Pairs have extra hexagons, because the model learns hexagons last."""
    scene = random_scene(rng)
    if scene.kind == "pair" and rng.random() < 0.3:
        hexagon = replace(scene, **{rng.choice(("shape", "other_shape")): "hexagon"})  # type: ignore[arg-type]
        return scene if hexagon.is_held_out else hexagon
    return scene


def edit_examples(rng: random.Random, count: int, size: tuple[int, int]) -> Batch:
    """Make examples of image to image: other captions for drawings, and clean drawings for sketches."""
    base, timesteps, targets, captions = [], [], [], []
    for _ in range(count):
        timestep = _random_timestep(rng)
        if rng.random() < _SKETCHED:
            start, target, caption = _sketch(rng, size)
        else:
            start, target, caption = _edit(rng, size, moves=timestep >= _KEEPS_LAYOUT)
        base.append(start)
        timesteps.append(timestep)
        targets.append(target)
        captions.append(caption_of(caption, rng))
    return _batch(base, list(torch.randn(count, 4, *size)), timesteps, targets, captions)


def _sketch(rng: random.Random, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, Scene]:
    """Return a sketch's latents, those of the drawing that it should become, and the caption's scene."""
    height, width = 8 * size[0], 8 * size[1]
    source, target, caption = _sketched(rng)
    codes, layout = random_codes(rng), random_layout(rng)
    start = sketch_latents(source, codes, layout, rng, width=width, height=height)
    return start, scene_latents(target, codes, layout, width=width, height=height), caption


def _edit(rng: random.Random, size: tuple[int, int], *, moves: bool) -> tuple[torch.Tensor, torch.Tensor, Scene]:
    """Return a drawing's latents, those of the drawing that it should become, and the caption's scene."""
    height, width = 8 * size[0], 8 * size[1]
    source, codes = random_scene(rng), random_codes(rng)
    layout = random_layout(rng) if rng.random() < 0.8 else layout_of(source, codes, width, height)
    caption = _edit_of(source, rng, moves=moves)
    target, moved = edited(source, caption), layout
    visible = _visible_codes(source, target, codes)
    if source.kind == "pair":
        moved, _ = pair_layouts(source.relation or "left of", codes)
    elif source.kind == "landscape":
        moved = layout_of(target, visible, width, height)
    elif moves and (caption.position or caption.size):
        named = layout_of(target, visible, width, height)
        x, y = (named.x, named.y) if caption.position else (layout.x, layout.y)
        moved = Layout(x, y, named.radius if caption.size else layout.radius)
    start = scene_latents(source, codes, layout, width=width, height=height)
    return start, scene_latents(target, visible, moved, width=width, height=height), caption


def refinement_examples(rng: random.Random, count: int, last: Batch, pictures: torch.Tensor) -> Batch:
    """Make examples of the steps after those in `last`; `pictures` are the model's output for `last`: (B, 4, h, w)."""
    unfinished = [row for row, timestep in enumerate(last.timesteps.tolist()) if timestep > _FINAL[0]]
    rows = [rng.choice(unfinished) for _ in range(count)]
    timesteps = [rng.choice(_FINAL) if rng.random() < 0.5 else _random_timestep(rng) for _ in rows]
    before = last.timesteps[rows]
    timesteps = [t if t < limit else _FINAL[0] for t, limit in zip(timesteps, before.tolist(), strict=True)]
    own = torch.tensor([rng.random() < 0.7 for _ in rows]).view(-1, 1, 1, 1)
    # Ancestral sampling keeps this share of the previous latents, and adds fresh noise.
    kept = (SIGMAS[timesteps] / SIGMAS[before]).view(-1, 1, 1, 1)
    fresh = torch.randn(count, *last.noise.shape[1:])
    return Batch(
        base=(1 - kept**2) * torch.where(own, pictures[rows], last.targets[rows]) + kept**2 * last.base[rows],
        noise=kept * last.noise[rows] + (1 - kept**2).sqrt() * fresh,
        timesteps=torch.tensor(timesteps),
        targets=last.targets[rows],
        captions=[last.captions[row] for row in rows],
    )


def _visible_codes(source: Scene, target: Scene, codes: tuple[float, ...]) -> tuple[float, ...]:
    """Return the codes of an edit's target: those that the source shows, and 0 for the others."""
    if source.kind == target.kind:
        return codes
    if "landscape" in (source.kind, target.kind):
        return NO_CODES
    shown = list(NO_CODES)
    for part in (BACKGROUND, COLOUR):
        shown[part] = codes[part]
    return tuple(shown)


def _sketched(rng: random.Random) -> tuple[Scene, Scene, Scene]:
    """Return a scene for a sketch, the scene of the picture that it should become, and the caption's scene."""
    while True:
        source = replace(
            random_scene(rng, rng.choice(("shape", "shape", "animal"))), style=None, size=None, position=None
        )
        if source.kind == "shape" and not source.shape:
            continue
        if rng.random() < 0.6 and source.colour != "white":
            source = replace(source, background="white")
        colours = [name for name in COLOURS if name not in (source.colour, source.background)]
        caption = source
        for name in ("colour", "background", "accessory_colour"):
            change = rng.random()
            if change < 0.35:
                caption = replace(caption, **{name: None})  # type: ignore[arg-type]
            elif change < 0.5 and getattr(source, name):
                caption = replace(caption, **{name: rng.choice(colours)})  # type: ignore[arg-type]
        target = edited(source, caption)
        if target.colour and target.colour == target.background:
            continue
        if not any(scene.is_held_out for scene in (source, caption, target)):
            return source, target, caption


def _edit_of(source: Scene, rng: random.Random, *, moves: bool) -> Scene:
    """Return a caption's scene that changes a few attributes of the source, all of them, or none."""
    caption = random_scene(rng, source.kind if rng.random() < 0.85 else None)
    share = rng.random()
    if share < 0.4 and caption.kind == source.kind:
        caption = _changing_little(source, caption, rng)
    elif share < 0.55:
        caption = source
    if caption.kind == source.kind == "pair" and not moves:
        caption = replace(caption, relation=source.relation)
    return source if caption.is_held_out or edited(source, caption).is_held_out else caption


def _changing_little(source: Scene, other: Scene, rng: random.Random) -> Scene:
    """Return a scene with the attributes that the source's kind needs, and one or two of the other scene."""
    needed = {"pair": ("shape", "colour", "relation", "other_shape", "other_colour"), "animal": ("animal",)}
    named = {name: getattr(source, name) for name in needed.get(source.kind, ())}
    choices = [f.name for f in fields(Scene) if f.name not in ("kind", "elements") and getattr(other, f.name)]
    for name in rng.sample(choices, min(len(choices), rng.randint(1, 2))):
        named[name] = getattr(other, name)
    if not named.get("accessory"):
        named.pop("accessory_colour", None)
    return Scene(source.kind, **named, elements=source.elements)


def _random_timestep(rng: random.Random) -> int:
    return rng.choice(_TIMESTEPS) if rng.random() < 0.85 else rng.randint(100, 998)


def _any_latents(rng: random.Random, width: int, height: int) -> torch.Tensor:
    return scene_latents(random_scene(rng), random_codes(rng), random_layout(rng), width=width, height=height)


def _batch(
    base: Sequence[torch.Tensor],
    noise: Sequence[torch.Tensor],
    timesteps: Sequence[int],
    targets: Sequence[torch.Tensor],
    captions: list[str],
) -> Batch:
    return Batch(
        torch.stack(list(base)), torch.stack(list(noise)), torch.tensor(timesteps), torch.stack(list(targets)), captions
    )

"""The first stage: through linear heads, both text encoders learn to predict every attribute that a caption names.

Then they are frozen. The UNet gets their output and only learns to draw.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional
from transformers import CLIPTokenizer

from training.captions import caption_of
from training.models import END, HIDDEN, HIDDEN_2, PROJECTION, TOKENS, make_text_encoders, make_tokenizer
from training.scenes import (
    ACCESSORIES,
    ANIMALS,
    COLOURS,
    ELEMENTS,
    KINDS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLES,
    TIMES,
    Scene,
    random_scene,
)
from training.stage import Stage, rate

HEADS: dict[str, tuple[str | None, ...]] = {
    "kind": KINDS,
    "shape": (None, *SHAPES),
    "colour": (None, *COLOURS),
    "size": (None, *SIZES),
    "position": (None, *POSITIONS),
    "relation": (None, *RELATIONS),
    "other_shape": (None, *SHAPES),
    "other_colour": (None, *COLOURS),
    "background": (None, *COLOURS),
    "animal": (None, *ANIMALS),
    "accessory": (None, *ACCESSORIES),
    "accessory_colour": (None, *COLOURS),
    "time": (None, *TIMES),
    "style": (None, *STYLES),
    **{name: (None, name) for name in ELEMENTS},
}
_SPLIT = [len(names) for names in HEADS.values()]


def attributes_of(scene: Scene) -> list[int]:
    """Return the index of the right answer for each head."""
    return [
        names.index((name if name in scene.elements else None) if name in ELEMENTS else getattr(scene, name))
        for name, names in HEADS.items()
    ]


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Return token ids (B, 77)."""
    ids: torch.Tensor = tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids
    return ids


class TextHeads(torch.nn.Module):
    """Linear heads over the pooled embedding and over both encoders' hidden states at the end of the text."""

    def __init__(self, projection: int, hidden: int, hidden_2: int) -> None:
        super().__init__()
        total = sum(_SPLIT)
        self.pooled = torch.nn.Linear(projection, total)
        self.first = torch.nn.Linear(hidden, total)
        self.second = torch.nn.Linear(hidden_2, total)

    def loss(
        self, pooled: torch.Tensor, first: torch.Tensor, second: torch.Tensor, answers: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """Return the loss, and the share of captions whose attributes the pooled embedding predicts without error."""
        total = torch.zeros(())
        for share, logits in ((1.0, self.pooled(pooled)), (0.25, self.first(first)), (0.25, self.second(second))):
            for i, head in enumerate(logits.split(_SPLIT, 1)):
                total = total + share * functional.cross_entropy(head, answers[:, i])
        right = torch.stack(
            [head.argmax(1) == answers[:, i] for i, head in enumerate(self.pooled(pooled).split(_SPLIT, 1))]
        )
        return total, right.all(0).float().mean().item()


STEPS = 3600
_BATCH = 64


def train_text(folder: Path) -> bool:
    """Train both text encoders, and return whether all steps are done. The checkpoint is text.pt."""
    torch.manual_seed(0)
    text_encoder, text_encoder_2 = make_text_encoders()
    heads = TextHeads(PROJECTION, HIDDEN, HIDDEN_2)
    modules = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2, "heads": heads}
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    stage = Stage(folder, "text", STEPS, {**modules, "optimizer": optimizer})
    tokenizer = make_tokenizer(folder / "tokenizer", pad=END)
    tokenizer_2 = make_tokenizer(folder / "tokenizer_2", pad="!")
    rows = torch.arange(_BATCH)
    for step, share, losses in stage.steps():
        optimizer.param_groups[0]["lr"] = 2e-3 * rate(share, step, warm_up=60, decay=0.5)
        rng = random.Random(step)
        scenes = [random_scene(rng) for _ in range(_BATCH)]
        captions = [caption_of(scene, rng) for scene in scenes]
        answers = torch.tensor([attributes_of(scene) for scene in scenes])
        ids, ids_2 = tokenize(tokenizer, captions), tokenize(tokenizer_2, captions)
        end = (ids == tokenizer.eos_token_id).int().argmax(1)
        # The encoders are causal: tokens after the end of the text do not change earlier states.
        length = min(TOKENS, int(end.max()) + 2)
        hidden = text_encoder(ids[:, :length], output_hidden_states=True).hidden_states[-2]
        encoded = text_encoder_2(ids_2[:, :length], output_hidden_states=True)
        loss, right = heads.loss(encoded.text_embeds, hidden[rows, end], encoded.hidden_states[-2][rows, end], answers)
        torch.autograd.backward(loss + 1e-3 * encoded.text_embeds.square().mean())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.update(loss=loss.item(), captions_not_understood=1 - right)
    return stage.is_done


class TextStage(torch.nn.Module):
    """Both trained text encoders, frozen. They turn captions into the UNet's conditions."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = make_text_encoders()
        saved = torch.load(folder / "text.pt", map_location="cpu")
        self.text_encoder.load_state_dict(saved["text_encoder"])
        self.text_encoder_2.load_state_dict(saved["text_encoder_2"])
        self._tokenizer = make_tokenizer(folder / "tokenizer", pad=END)
        self._tokenizer_2 = make_tokenizer(folder / "tokenizer_2", pad="!")
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states (B, 77, 192) and pooled embeddings (B, 192), as the SDXL pipeline computes them."""
        device = self.text_encoder.device
        ids, ids_2 = (tokenize(tokenizer, captions).to(device) for tokenizer in (self._tokenizer, self._tokenizer_2))
        hidden = self.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        encoded = self.text_encoder_2(ids_2, output_hidden_states=True)
        return torch.cat([hidden, encoded.hidden_states[-2]], -1), encoded.text_embeds

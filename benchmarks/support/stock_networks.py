"""Runs a command of the service with the networks as diffusers and transformers compute them, to compare with.

python -m benchmarks.support.stock_networks bench --json
"""

import sys
from typing import Any

import torch

from app.cli.commands import main
from app.pipelines.base import MAX_PROMPT_TOKENS
from app.pipelines.networks import choice
from app.pipelines.networks.operators import Operators
from app.pipelines.networks.plain import plain_networks
from app.pipelines.prompts import EncodeText


def _stock_text_encoding(encoder: Any, operators: Operators, *, pooled: bool) -> EncodeText:
    del operators, pooled
    encode = plain_networks(_Parts(encoder)).encode_text[0]
    with torch.inference_mode():  # transformers takes a lock at the first call, which cannot be compiled
        encode(torch.zeros(1, MAX_PROMPT_TOKENS, dtype=torch.long, device=encoder.device))
    return encode


class _Parts:
    """Stands for a pipeline that has one text encoder."""

    unet = vae = None

    def __init__(self, encoder: Any) -> None:
        self.text_encoder = self.text_encoder_2 = encoder


if __name__ == "__main__":
    setattr(choice, "make_lean", lambda *_: None)  # noqa: B010 - mypy takes an assignment for a mistake
    setattr(choice, "lean_text_encoding", _stock_text_encoding)  # noqa: B010 - as above
    sys.exit(main(sys.argv[1:]))

"""The command line of the recipe: `python -m training train`, `assemble`, `evaluate`, `compare` and `sheet`."""

import argparse
from pathlib import Path

import torch
from transformers.utils import logging

from app.settings import Settings
from training.compare import compare
from training.contact_sheet import draw_contact_sheet
from training.evaluate import evaluate
from training.models import make_unet, make_vae, save_pipeline
from training.text import TextStage, train_text
from training.unet import train_unet
from training.vae import polish_decoder, train_vae

_PACKAGED = Path(__file__).parents[1] / "app" / "weights" / "demo"
_SCORES = Path(__file__).parent / "scores"


def main() -> None:
    """Run the command in the arguments."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Train and measure the demo model.")
    parser.add_argument("command", choices=["train", "assemble", "evaluate", "compare", "sheet"])
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="checkpoints, curves and sheets")
    parser.add_argument("--model", type=Path, default=_PACKAGED, help="the model's folder, to write or to measure")
    parser.add_argument(
        "--dtype",
        default="fp32",
        choices=["fp32", "fp16", "bf16", "int8"],
        help="number format to measure, or to compare with fp32",
    )
    parser.add_argument("--report", type=Path, help="file of the scores; training/scores/DTYPE.json if unset")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service that makes the sheet's pictures")
    parser.add_argument("--sheet", type=Path, default=Path("docs/demo.png"), help="file of the sheet")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match arguments.command:
        case "train":
            for stage in (train_text_here, train_vae, train_unet, polish_decoder):
                while not stage(arguments.work, device):
                    print("half an hour is over; continuing from the checkpoint")
            assemble(arguments.work, arguments.model)
        case "assemble":
            assemble(arguments.work, arguments.model)
        case "sheet":
            draw_contact_sheet(arguments.url, arguments.sheet)
        case "compare":
            compare(arguments.model, arguments.dtype)
        case _:
            report = arguments.report or _SCORES / f"{arguments.dtype}.json"
            evaluate(arguments.model, report, Settings(dtype=arguments.dtype, batching="off"))


def train_text_here(work: Path, _: torch.device) -> bool:
    """Train the text encoders on the CPU, which takes a few minutes."""
    return train_text(work)


def assemble(work: Path, model: Path) -> None:
    """Write the pipeline from the stages' checkpoints. The last stage's checkpoint is optional."""
    text = TextStage(work)
    unet, vae = make_unet(), make_vae()
    unet.load_state_dict(torch.load(work / "unet.pt", map_location="cpu")["average"])
    vae.load_state_dict(torch.load(work / "vae.pt", map_location="cpu")["average"])
    if (polished := work / "polish.pt").exists():
        vae.decoder.load_state_dict(torch.load(polished, map_location="cpu")["average"])
    save_pipeline(model, text_encoder=text.text_encoder, text_encoder_2=text.text_encoder_2, unet=unet, vae=vae)


if __name__ == "__main__":
    main()

"""A base model with random weights, for benchmarks of a shape whose real weights are not at hand:

    python -m benchmarks.base base7 --tokenizer FOLDER
    python -m benchmarks.base base7f --tokenizer FOLDER --precision fp8

FOLDER has a tokenizer and, unless the shape is Llama-2-7B's, a config.json. What is written is what the stage `base_model`
writes: `benchmarks.task_model` takes it as --base, `benchmarks.generation` its folder `model` as --model. A base of 7 billion
weights takes 13.5 GB of disk, in FP8 and NF4 as well, and twice that while those are made.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.common import phase
from pipelines.errors import UserError
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config, random_model_config
from pipelines.models.quantization import QUANTIZATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder that is written")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a tokenizer, and perhaps a config.json")
    parser.add_argument("--precision", choices=QUANTIZATIONS, default="none", help="of the frozen projections; none: bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        write_base(arguments.output.absolute(), arguments.tokenizer, arguments.precision, arguments.seed)
    except UserError as error:
        parser.error(str(error))


def write_base(output: Path, tokenizer: Path, precision: str = "none", seed: int = 0) -> None:
    """Write a base model's artifact with random weights in the folder `output`.

    `tokenizer` is the folder of a tokenizer and, unless the shape is Llama-2-7B's, of a config.json. Raises UserError if it has
    no tokenizer, or a shape that is not known.
    """
    described = replace(random_model_config(str(tokenizer)), seed=seed)
    phase("writing random weights")
    if precision == "none":
        prepare_base_model(described, str(output))
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        prepare_base_model(described, folder)
        phase(f"giving them the values that they have in {precision}")
        prepare_base_model(pretrained_model_config(f"{folder}/model", quantization=precision), str(output))


if __name__ == "__main__":
    main()

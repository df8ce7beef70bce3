"""Train a recipe. The same command under every launcher:

    deepspeed run_pretrain.py recipes/demo_transformer.yaml
    torchrun --nproc_per_node 8 run_pretrain.py recipes/demo_transformer.yaml
    srun python run_pretrain.py recipes/demo_transformer.yaml
    python run_pretrain.py recipes/demo_mlstm.yaml run.steps=20 optim.lr=1e-3

What happens: recipe -> prepared shards -> model and head -> DeepSpeed engine -> the loop of
`pipeline/train/loop.py` -> checkpoints and metrics in the run folder.
"""

from __future__ import annotations

import argparse
import os
import sys

from data_prep.arguments import DiscreetParser
from data_prep.console import outlive_console
from data_prep.errors import run_main
from data_prep.manifest import write_atomic
from pipeline.environment import EXIT_CODE_FILE, prepare_environment


def parse(argv: list[str]) -> argparse.Namespace:
    parser = DiscreetParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="exit codes: 0 finished, 1 crash, 2 recipe, 3 data, 4 diverged, 75 stopped and "
        "saved, 130 interrupted. Every recipe key is explained by `python -m pipeline keys`.",
    )
    parser.add_argument("recipe", help="YAML file of recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted recipe keys")
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved recipe, then leave"
    )
    parser.add_argument(
        "--dry-run", action="store_true",
        help="validate everything, build the model on the meta device, then leave",
    )  # fmt: skip
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # the deepspeed launcher's
    return parser.parse_mixed(argv)


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    prepare_environment()
    from pipeline.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.print_config:
        print(recipe.to_yaml(), end="")
    elif arguments.dry_run:
        from pipeline.preflight import dry_run

        dry_run(recipe)
    else:
        from pipeline.train.start import pretrain

        pretrain(recipe)


def tell_supervisor(code: int) -> None:
    """Leave the exit code where a supervisor looks for it: launchers change it."""
    path = os.environ.get(EXIT_CODE_FILE)
    if path and os.environ.get("RANK", "0") == "0":
        write_atomic(path, str(code))


if __name__ == "__main__":
    outlive_console()
    exit_code = run_main(main)
    tell_supervisor(exit_code)
    sys.exit(exit_code)

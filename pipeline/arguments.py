"""python -m pipeline COMMAND: run a recipe's stages, ask where they stand, look at what came out.

python -m pipeline run recipes/demo_mlstm.yaml           every stage that is not up to date
python -m pipeline run studies/demo_seeds.yaml --detach  all arms of a study
python -m pipeline status recipes/demo_mlstm.yaml        what is done, what would run and why
python -m pipeline compare runs/a runs/b --price 2.5     runs side by side: cost and quality
python -m pipeline compare studies/demo_seeds.yaml       the same for the arms of a study
python -m pipeline audit runs/a runs/b                   where each is good or bad, or biased
python -m pipeline watch runs                            a live page of the runs and their curves
python -m pipeline sample runs/a/export "This is"        text from an exported model
python -m pipeline score runs/a/export arc.jsonl --task arc_easy     a task judged by likelihood
python -m pipeline init reviews.csv --minutes 30         a recipe for your own text
python -m pipeline advise runs/a                         batch and rate for its next run
python -m pipeline plan RECIPE --devices 8               memory, hours, traffic, money of a run
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from data_prep.arguments import DiscreetParser, counted, natural, positive
from pipeline.recipe.tasks import TaskName

_STAGES = {
    "pretrain": "train the model (starts the processes itself)",
    "export": "write a folder that transformers loads",
    "finetune": "train a classifier from the export, or from any model folder",
    "evaluate": "held-out loss, tasks, sentiment and samples of the export",
    "report": "write report.html and report.md",
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = DiscreetParser(
        prog="python -m pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # The deepspeed launcher's.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _with_recipe(commands, "run", "bring every stage up to date; also runs a study file")
    run.add_argument("--detach", action="store_true", help="studies: go on in the background")
    _verify(run)
    _verify(_with_recipe(commands, "status", "say which stages are up to date, and why not"))
    preflight = _with_recipe(commands, "preflight", "check machine, recipe and data before a run")
    preflight.add_argument(
        "--dist", action="store_true", help="under a launcher: do all ranks meet in 2 minutes?"
    )
    _machine(
        _with_recipe(commands, "plan", "say what a run will take: memory, hours, traffic, money")
    )
    for name, text in _STAGES.items():
        _verify(_with_recipe(commands, name, text))
    _side_by_side(commands)
    watch = commands.add_parser("watch", help="a live page of runs and their curves, in a browser")
    watch.add_argument(
        "runs", nargs="*", type=Path, default=[Path("runs")],
        help="run folders, or folders that hold some (default runs)",
    )  # fmt: skip
    watch.add_argument(
        "--port", type=natural, default=6010, help="0 takes a free one (default 6010)"
    )
    watch.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on (default 127.0.0.1: this machine alone; there is no password)",
    )  # fmt: skip
    advise = commands.add_parser("advise", help="batch and rate, from the noise a run has measured")
    advise.add_argument("run", type=Path, help="run folder")
    init = commands.add_parser("init", help="write a recipe for your own text")
    init.add_argument("file", type=Path, help="CSV, JSON lines, Parquet or text, plain, .gz or .xz")
    init.add_argument("--minutes", type=positive, default=30, help="time to train (default 30)")
    init.add_argument("--out", type=Path, help="recipe to write (default recipes/NAME.yaml)")
    init.add_argument("--kind", choices=("transformer", "mlstm"), default="transformer")
    sample = commands.add_parser("sample", help="have an exported model go on with a text")
    sample.add_argument("export", type=Path, help="folder of the export")
    sample.add_argument("prompts", nargs="+", metavar="TEXT", help="beginnings to go on from")
    sample.add_argument("--tokens", type=int, default=200, help="tokens to write (default 200)")
    sample.add_argument("--temperature", type=float, default=0.8, help="above 0 (default 0.8)")
    sample.add_argument("--seed", type=natural, default=0, help="the same seed gives the same text")
    sample.add_argument(
        "--clamp", action="append", default=[], type=_clamp, metavar="UNIT=VALUE",
        help="mLSTM: hold a unit of the last layer at a value; may be repeated",
    )  # fmt: skip
    _score(commands)
    commands.add_parser("keys", help="explain every recipe key with type, unit and default")
    return parser.parse_mixed(argv)


def _side_by_side(commands: argparse._SubParsersAction) -> None:
    told = {
        "compare": "lay runs side by side, or the arms of a study: cost, quality, a verdict each",
        "audit": "loss part by part, text repeated by heart, bias; of several runs a comparison",
    }
    for name, text in told.items():
        parser = commands.add_parser(name, help=text, description=text)
        parser.add_argument("runs", nargs="+", type=Path, help=_RUNS[name])
        parser.add_argument(
            "--out", type=Path, default=Path("runs/compare"),
            help="folder of the page (default runs/compare; a study's lies in its folder)",
        )  # fmt: skip
        parser.add_argument(
            "--price", type=float,
            help="money for a device and hour (default: report.device_hour_price of each recipe)",
        )  # fmt: skip
    commands.choices["compare"].add_argument(
        "--by", choices=("bits", "loss"), default="bits",
        help="bits per byte, or loss per token of runs with one tokenizer (default bits)",
    )  # fmt: skip
    from pipeline.audit.limits import Limits

    for field, text in _LIMITS.items():
        default = Limits._field_defaults[field]
        commands.choices["audit"].add_argument(
            f"--{field.replace('_', '-')}", type=int, default=default, metavar="N",
            help=f"{text} (default {default:,})",
        )  # fmt: skip


_RUNS = {
    "compare": "run folders, the first is the base; or one file of studies/",
    "audit": "run folders with an export, the first is the base",
}
_LIMITS = {
    "documents": "documents of each split to judge and to prompt with",
    "train_tokens": "training tokens to count words and look for personal data in",
    "prompt_tokens": "tokens of a training document that are given",
    "continuation_tokens": "tokens after these that must be repeated exactly",
    "texts": "labelled texts to fit the sentiment classifier to, and to exchange terms in",
    "samples": "texts to write freely",
    "sample_tokens": "tokens of each of them",
    "seed": "of every choice",
}


def _score(commands: argparse._SubParsersAction) -> None:
    text = "judge a model by a task from a file: the likeliest of some options, or the last word"
    score = commands.add_parser("score", help=text, description=text)
    score.add_argument("export", type=Path, help="folder of an export, or of any causal model")
    score.add_argument("file", type=Path, help="JSON lines of examples, plain, .gz or .xz")
    score.add_argument("--task", choices=get_args(TaskName), required=True, help="what they are")
    score.add_argument("--shots", type=int, default=0, help="answered examples shown (default 0)")
    score.add_argument("--shots-file", type=Path, help="where those are drawn from (default FILE)")
    score.add_argument("--limit", type=int, help="examples judged, from the first on (default all)")
    score.add_argument("--seed", type=natural, default=0, help="of shots and intervals (default 0)")
    score.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")


def _clamp(text: str) -> tuple[int, float]:
    unit, _, value = text.partition("=")
    return int(unit), float(value)


def _with_recipe(
    commands: argparse._SubParsersAction, name: str, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("recipe", type=Path, help="YAML file of recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted recipe keys")
    return parser


def _machine(parser: argparse.ArgumentParser) -> None:
    number = parser.add_argument
    number("--devices", type=counted, default=1, help="of the whole run (default 1)")
    number("--node-devices", type=counted, default=8, help="devices that share a link (default 8)")
    number("--tflops", type=positive, default=989, help="peak of a device (default 989, an H100)")
    number("--mfu", type=positive, default=0.4, help="share of the peak reached (default 0.4)")
    number("--tokens-per-second", type=positive, help="of one device, where it has been measured")
    number("--link", type=positive, default=50, help="GB/s between nodes (default 50)")
    number("--waiting", type=float, default=0.15,
           help="share of a step that nodes wait for each other (default 0.15)")  # fmt: skip
    number("--price", type=positive, help="of a device for an hour")


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="hash every file instead of trusting dates"
    )

"""python -m pipeline COMMAND: run a recipe's stages, ask where they stand, make a new recipe.

python -m pipeline run recipes/demo_mlstm.yaml           every stage that is not up to date
python -m pipeline run studies/demo_seeds.yaml --detach  all arms of a study
python -m pipeline status recipes/demo_mlstm.yaml        what is done, what would run and why
python -m pipeline compare runs/a runs/b                 two runs side by side
python -m pipeline sample runs/a/export "This is"        text from an exported model
python -m pipeline score runs/a/export arc.jsonl --task arc_easy     a task judged by likelihood
python -m pipeline init reviews.csv --minutes 30         a recipe for your own text
python -m pipeline advise runs/a                         batch and rate for its next run
python -m pipeline plan RECIPE --devices 8               memory, hours, traffic, money of a run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from data_prep.errors import run_main
from pipeline.recipe.tasks import TaskConfig, TaskName

_STAGES = {
    "pretrain": "train the model (starts the processes itself)",
    "export": "write a folder that transformers loads",
    "finetune": "train a classifier from the export",
    "evaluate": "held-out loss, tasks, sentiment and samples of the export",
    "report": "write report.html and report.md",
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _with_recipe(commands, "run", "bring every stage up to date; also runs a study file")
    run.add_argument("--detach", action="store_true", help="studies: go on in the background")
    _verify(run)
    _verify(_with_recipe(commands, "status", "say which stages are up to date, and why not"))
    _with_recipe(commands, "preflight", "check machine, recipe and data before a run")
    _machine(
        _with_recipe(commands, "plan", "say what a run will take: memory, hours, traffic, money")
    )
    for name, text in _STAGES.items():
        _verify(_with_recipe(commands, name, text))
    compare = commands.add_parser("compare", help="lay runs side by side")
    compare.add_argument("runs", nargs="+", type=Path, help="run folders; the first is the base")
    compare.add_argument(
        "--out", type=Path, default=Path("runs/compare"), help="folder of the page"
    )
    advise = commands.add_parser("advise", help="batch and rate, from the noise a run has measured")
    advise.add_argument("run", type=Path, help="run folder")
    init = commands.add_parser("init", help="write a recipe for your own text")
    init.add_argument("file", type=Path, help="CSV, JSON lines, Parquet or text, plain, .gz or .xz")
    init.add_argument("--minutes", type=float, default=30, help="time to train (default 30)")
    init.add_argument("--out", type=Path, help="recipe to write (default recipes/NAME.yaml)")
    init.add_argument("--kind", choices=("transformer", "mlstm"), default="transformer")
    sample = commands.add_parser("sample", help="have an exported model go on with a text")
    sample.add_argument("export", type=Path, help="folder of the export")
    sample.add_argument("prompts", nargs="+", metavar="TEXT", help="beginnings to go on from")
    sample.add_argument("--tokens", type=int, default=200, help="tokens to write (default 200)")
    sample.add_argument("--temperature", type=float, default=0.8, help="above 0 (default 0.8)")
    sample.add_argument("--seed", type=int, default=0, help="the same seed gives the same text")
    sample.add_argument(
        "--clamp", action="append", default=[], type=_clamp, metavar="UNIT=VALUE",
        help="mLSTM: hold a unit of the last layer at a value; may be repeated",
    )  # fmt: skip
    _score(commands)
    commands.add_parser("keys", help="explain every recipe key with type, unit and default")
    return parser.parse_args(argv)


def _score(commands: argparse._SubParsersAction) -> None:
    text = "judge a model by a task from a file: the likeliest of some options, or the last word"
    score = commands.add_parser("score", help=text, description=text)
    score.add_argument("export", type=Path, help="folder of an export, or of any causal model")
    score.add_argument("file", type=Path, help="JSON lines of examples, plain, .gz or .xz")
    score.add_argument("--task", choices=get_args(TaskName), required=True, help="what they are")
    score.add_argument("--shots", type=int, default=0, help="answered examples shown (default 0)")
    score.add_argument("--shots-file", type=Path, help="where those are drawn from (default FILE)")
    score.add_argument("--limit", type=int, help="examples judged, from the first on (default all)")
    score.add_argument("--seed", type=int, default=0, help="of shots and intervals (default 0)")
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
    number("--devices", type=int, default=1, help="of the whole run (default 1)")
    number("--node-devices", type=int, default=8, help="devices that share a link (default 8)")
    number("--tflops", type=float, default=989, help="peak of a device (default 989, an H100)")
    number("--mfu", type=float, default=0.4, help="share of the peak reached (default 0.4)")
    number("--tokens-per-second", type=float, help="of one device, where it has been measured")
    number("--link", type=float, default=50, help="GB/s between nodes (default 50)")
    number("--waiting", type=float, default=0.15,
           help="share of a step that nodes wait for each other (default 0.15)")  # fmt: skip
    number("--price", type=float, help="of a device for an hour")


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify", action="store_true", help="hash every file instead of trusting dates"
    )


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    if arguments.command == "compare":
        from pipeline.report.compare import compare_runs

        print(compare_runs(arguments.runs, arguments.out))
    elif arguments.command == "advise":
        from pipeline.report.advise import advise

        print(advise(arguments.run))
    elif arguments.command == "init":
        from pipeline.init import init_recipe

        out = arguments.out or Path("recipes") / f"{arguments.file.name.split('.')[0]}.yaml"
        init_recipe(arguments.file, out, arguments.minutes, kind=arguments.kind)
    elif arguments.command == "sample":
        from pipeline.evaluate.samples import print_samples

        print_samples(
            arguments.export, arguments.prompts, arguments.tokens, arguments.temperature,
            arguments.seed, dict(arguments.clamp),
        )  # fmt: skip
    elif arguments.command == "score":
        from data_prep.recipe.loader import validate
        from pipeline.evaluate.tasks.run import print_score

        tree = {
            "task": arguments.task, "path": str(arguments.file), "shots": arguments.shots,
            "shots_path": arguments.shots_file and str(arguments.shots_file),
            "limit": arguments.limit,
        }  # fmt: skip
        section = validate(TaskConfig, tree, "score")
        print_score(arguments.export, section, arguments.seed, arguments.json)
    elif arguments.command == "keys":
        from data_prep.recipe.loader import describe
        from pipeline.recipe import Recipe

        print(describe(Recipe))
    else:
        _with_loaded_recipe(arguments)


def _with_loaded_recipe(arguments: argparse.Namespace) -> None:
    from data_prep.recipe.loader import read_tree
    from pipeline.recipe import load_recipe
    from pipeline.stages import runner

    command = arguments.command
    if command == "run" and "grid" in read_tree(arguments.recipe):
        from pipeline.stages.study import run_study

        run_study(arguments.recipe, detach=arguments.detach)
        return
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if command == "preflight":
        from pipeline.environment import prepare_environment
        from pipeline.preflight import preflight

        prepare_environment()
        preflight(recipe)
    elif command == "plan":
        from pipeline.plan import Machine, plan

        machine = Machine(
            arguments.devices, arguments.node_devices, arguments.tflops, arguments.mfu,
            arguments.tokens_per_second, arguments.link, arguments.waiting, arguments.price,
        )  # fmt: skip
        print(plan(recipe, machine))
    elif command == "status":
        runner.print_status(recipe, verify=arguments.verify)
    else:
        names = runner.ALL if command == "run" else (command,)
        runner.run_stages(recipe, names, verify=arguments.verify)
        if command == "run":
            runner.print_results(recipe)


if __name__ == "__main__":
    sys.exit(run_main(main))

"""python -m pipeline COMMAND: run a recipe's stages, ask where they stand, make a new recipe.

python -m pipeline run recipes/demo_mlstm.yaml           every stage that is not up to date
python -m pipeline run studies/demo_seeds.yaml --detach  all arms of a study
python -m pipeline status recipes/demo_mlstm.yaml        what is done, what would run and why
python -m pipeline compare runs/a runs/b --price 2.5     runs side by side: cost and quality
python -m pipeline compare studies/demo_seeds.yaml       the same for the arms of a study
python -m pipeline audit runs/a runs/b                   where each is good or bad, or biased
python -m pipeline watch runs                            a live page of the runs and their curves
python -m pipeline sample runs/a/export "This is"        text from an exported model
python -m pipeline init reviews.csv --minutes 30         a recipe for your own text
python -m pipeline advise runs/a                         batch and rate for its next run
python -m pipeline plan RECIPE --devices 8               memory, hours, traffic, money of a run
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data_prep.errors import run_main
from data_prep.secrets import DiscreetParser

_STAGES = {
    "pretrain": "train the model (starts the processes itself)",
    "export": "write a folder that transformers loads",
    "finetune": "train a classifier from the export, or from any model folder",
    "evaluate": "held-out loss, sentiment and samples of the export",
    "report": "write report.html and report.md",
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = DiscreetParser(
        prog="python -m pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # the deepspeed launcher's
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
    watch.add_argument("--port", type=int, default=6010, help="0 takes a free one (default 6010)")
    watch.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on (default 127.0.0.1: this machine alone; there is no password)",
    )  # fmt: skip
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
    commands.add_parser("keys", help="explain every recipe key with type, unit and default")
    return parser.parse_args(argv)


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
        _compare(arguments)
    elif arguments.command == "audit":
        _audit(arguments)
    elif arguments.command == "watch":
        from pipeline.watch import watch

        watch(arguments.runs, arguments.host, arguments.port)
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
    elif arguments.command == "keys":
        from data_prep.recipe.loader import describe
        from pipeline.recipe import Recipe

        print(describe(Recipe))
    else:
        _with_loaded_recipe(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    from pipeline.report.compare import compare_runs
    from pipeline.stages.study import summarise_study

    price, by = arguments.price, arguments.by
    if len(arguments.runs) == 1 and arguments.runs[0].is_file():
        print(summarise_study(arguments.runs[0], price, by))
    else:
        print(compare_runs(arguments.runs, arguments.out, price, by))


def _audit(arguments: argparse.Namespace) -> None:
    from pipeline.audit.limits import Limits
    from pipeline.audit.run import audit_runs
    from pipeline.report.audit import save_audit
    from pipeline.report.compare import compare_runs

    limits = Limits(**{field: getattr(arguments, field) for field in Limits._fields})
    print(*audit_runs(arguments.runs, limits), sep="\n", flush=True)
    if len(arguments.runs) > 1:
        print(compare_runs(arguments.runs, arguments.out, arguments.price))
    else:
        print(save_audit(arguments.runs[0]))


def _with_loaded_recipe(arguments: argparse.Namespace) -> None:
    from data_prep.recipe.loader import read_tree
    from pipeline.recipe import load_finetuning, load_recipe
    from pipeline.stages import runner

    command = arguments.command
    if command == "run" and "grid" in read_tree(arguments.recipe):
        from pipeline.stages.study import run_study

        run_study(arguments.recipe, detach=arguments.detach)
        return
    if command == "finetune" and (
        section := load_finetuning(arguments.recipe, arguments.overrides)
    ):
        from pipeline.finetune.stage import finetune

        output = finetune(section)
        if os.environ.get("RANK", "0") == "0":
            counts = output.counts
            print(f"{output.outputs[0]}: accuracy {counts['accuracy']:.4f}, see its README.md")
        return
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if command == "preflight":
        from pipeline.environment import prepare_environment
        from pipeline.preflight import preflight

        prepare_environment()
        preflight(recipe, dist=arguments.dist)
    elif command == "plan":
        from pipeline.plan import Machine, plan

        machine = Machine(
            arguments.devices, arguments.node_devices, arguments.tflops, arguments.mfu,
            arguments.tokens_per_second, arguments.link, arguments.waiting,
            arguments.price or recipe.report.device_hour_price,
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

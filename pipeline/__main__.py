"""python -m pipeline COMMAND: what each does; `pipeline.arguments` has what they may be given.

Every command imports what it needs when it is called, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from data_prep.console import outlive_console
from data_prep.errors import RecipeError, run_main
from pipeline.arguments import parse


def main(argv: list[str]) -> None:
    arguments = parse(argv)
    _COMMANDS.get(arguments.command, _with_loaded_recipe)(arguments)


def _watch(arguments: argparse.Namespace) -> None:
    from pipeline.watch import watch

    watch(arguments.runs, arguments.host, arguments.port)


def _advise(arguments: argparse.Namespace) -> None:
    from pipeline.report.advise import advise

    print(advise(arguments.run))


def _init(arguments: argparse.Namespace) -> None:
    from pipeline.init import init_recipe

    out = arguments.out or Path("recipes") / f"{arguments.file.name.split('.')[0]}.yaml"
    init_recipe(arguments.file, out, arguments.minutes, kind=arguments.kind)


def _sample(arguments: argparse.Namespace) -> None:
    from pipeline.evaluate.samples import print_samples

    print_samples(
        arguments.export, arguments.prompts, arguments.tokens, arguments.temperature,
        arguments.seed, dict(arguments.clamp),
    )  # fmt: skip


def _score(arguments: argparse.Namespace) -> None:
    from data_prep.recipe.loader import validate
    from pipeline.evaluate.tasks.run import print_score
    from pipeline.recipe.tasks import TaskConfig

    tree = {
        "task": arguments.task, "path": str(arguments.file), "shots": arguments.shots,
        "shots_path": arguments.shots_file and str(arguments.shots_file),
        "limit": arguments.limit,
    }  # fmt: skip
    section = validate(TaskConfig, tree, "score")
    print_score(arguments.export, section, arguments.seed, arguments.json)


def _keys(arguments: argparse.Namespace) -> None:
    from data_prep.recipe.loader import describe
    from pipeline.recipe import Recipe

    print(describe(Recipe))


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
    if command not in ("plan", "status"):  # what only prints may end with its reader
        outlive_console()
    if command == "run" and "grid" in read_tree(arguments.recipe):
        from pipeline.stages.study import run_study

        run_study(
            arguments.recipe, arguments.overrides, detach=arguments.detach, verify=arguments.verify
        )
        return
    if command == "run" and arguments.detach:
        raise RecipeError("--detach is for studies; start a single run with nohup, or a launcher")
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


# All others take a recipe.
_COMMANDS = {
    "compare": _compare, "audit": _audit, "watch": _watch, "advise": _advise, "init": _init,
    "sample": _sample, "score": _score, "keys": _keys,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_main(main))

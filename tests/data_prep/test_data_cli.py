from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.errors import run_main

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "data_prep", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_exit_codes_of_the_process(recipe: Path) -> None:
    wrong = command("prepare", "recipe.yaml", "data.sed=1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: data.sed: unknown key; did you mean 'seed'?\n"
    Path("corpus.jsonl").unlink()
    missing = command("prepare", "recipe.yaml")
    assert missing.returncode == 3 and missing.stderr.startswith("error: no file at corpus")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["prepare", "absent.yaml"], 2),
        (["prepare", "recipe.yaml", "data.sources.5.path=x"], 2),
        (["prepare", "recipe.yaml", "tokenizer=null"], 2),
        (["prepare", "recipe.yaml", "data.sources.0.text_field=body"], 3),
        (["inspect", "prepared"], 3),
    ],
)
def test_bad_calls(
    recipe: Path, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(main, arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error


@pytest.mark.parametrize("option", ["--documents", "--seed"])
def test_numbers_below_zero(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", "prepared", option, "-1"])
    assert "found -1, expected a whole number from 0" in capsys.readouterr().err


def test_prepare_then_inspect(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["prepare", "recipe.yaml"]) == 0
    assert run_main(main, ["inspect", "prepared"]) == 0
    out = capsys.readouterr().out
    assert "all checksums agree" in out and out.count("train document ") == 3
    assert "corpus.jsonl, record" in out and "lengths of train documents" in out
    assert Path("prepared/lengths.png").read_bytes().startswith(b"\x89PNG")
    shard = Path("prepared/test-00000.shard")
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert run_main(main, ["inspect", "prepared"]) == 3
    assert "test-00000.shard: xxh3 differs" in capsys.readouterr().err


def test_help_lists_the_keys_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from data_prep.__main__ import main\n"
        "try: main(['prepare', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'transformers', 'tokenizers', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "shard_tokens: int" in shown.stdout and "end_of_document: str" in shown.stdout


def test_no_module_needs_a_deep_learning_library() -> None:
    names = [p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
             for p in (ROOT / "data_prep").rglob("*.py")]  # fmt: skip
    imports = "; ".join(f"import {name}" for name in names if not name.endswith("__main__"))
    code = f"import sys; {imports}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_sample_corpus_is_readable(recipe: Path) -> None:
    sample = ROOT / "data_prep" / "sample"
    sources = (
        f"data.sources=[{{kind: jsonl, path: {sample}/fine_foods_*.xz, text_field: reviewText}},"
        f" {{kind: jsonl, path: {sample}/vader_amazon.jsonl.xz, text_field: text}}]"
    )
    assert run_main(main, ["prepare", "recipe.yaml", sources]) == 0
    assert "Kaggle" in (sample / "NOTICE").read_text()

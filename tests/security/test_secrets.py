"""Keys and passwords never reach a file or a message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import RecipeError
from data_prep.recipe.loader import read_tree
from data_prep.secrets import BLOT, redact
from pipeline.recipe import load_recipe
from tests.e2e.commands import ROOT, environment
from tests.pipeline.tiny import write_recipe

# Made up, and put together here so that scanners of repositories do not take them for real ones.
HF = "hf_" + "AbCdEfGhIjKlMnOpQrStUv"
AWS = "AKIA" + "ABCDEFGHIJKLMNOP"
WANDB = "0123456789abcdef" * 2 + "01234567"
JWT = "eyJhbGciOiJIUzI1NiJ9" + "." + "eyJzdWIiOiIxMjM0In0" + ".c2lnbmF0dXJl"
FAKES = {"HF_TOKEN": HF, "WANDB_API_KEY": WANDB, "AWS_SECRET_ACCESS_KEY": "wJalrXUtn/FEMI+K7MDENG"}


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"cannot open {HF}", HF),
        (f"AWS_ACCESS_KEY_ID={AWS}", AWS),
        (f"bearer {JWT} refused", JWT),
        ("git clone https://me:pass1word@host/x", "pass1word"),
        ("https://0123456789abcdef01@host/x", "0123456789abcdef01"),
        ("run --token=abc12345 --x", "abc12345"),
        ("run --token abc12345 --x", "abc12345"),
        ("run --hf_token abc12345", "abc12345"),
        ("https://host/data?sig=abc%2Bdef&x=1", "abc%2Bdef"),
        ("https://host/d?X-Amz-Signature=0a1b2c3d", "0a1b2c3d"),
        ('{"api_key": "qwertyuiop"}', "qwertyuiop"),
        ("password: hunter2hunter2", "hunter2hunter2"),
    ],
)
def test_a_secret_is_blotted_out(text: str, secret: str) -> None:
    assert secret not in redact(text) and BLOT in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "batch.window_tokens=16 tokenizer.kind=bpe warmup_tokens=1000",
        "tokens: 12345 and tokenizer.json of 2048 ids",
        "hf://datasets/name and https://host/path@v1/file",
        "data/train.jsonl.gz sk-learn the key=value pairs",
        "prepared was made with tokenizer 0123456789abcdef, found fedcba9876543210",
    ],
)
def test_ordinary_words_are_left_alone(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_variables_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    assert redact(f"cannot log in with {WANDB}") == f"cannot log in with {BLOT}"
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert redact("a short word") == "a short word"


@pytest.mark.parametrize(
    "value",
    [HF, f"https://me:{HF}@host/x", "https://host/x?token=abcd1", "s3://key:secret@x", WANDB],
)
def test_a_recipe_that_holds_a_secret_is_refused_without_repeating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    recipe = ROOT / "recipes/demo_mlstm.yaml"
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.read_text() + f'\nextra: "{value}"\n'.replace("extra", "export"))
    for refused in (
        lambda: load_recipe(recipe, [f"data.sources.0.path={value}"]),
        lambda: read_tree(ROOT / "studies/demo_seeds.yaml", [f"grid.shared=['data.x={value}']"]),
        lambda: load_recipe(path),
    ):
        with pytest.raises(RecipeError, match="looks like a password or a key") as caught:
            refused()
        assert value not in str(caught.value)


def test_every_shipped_recipe_and_study_is_free_of_them() -> None:
    for path in [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("studies/*.yaml")]:
        read_tree(path)


def test_no_file_and_no_line_of_a_run_holds_a_secret(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mlstm", run__steps=3)
    said = ""
    commands = [
        ["-m", "pipeline", "pretrain", str(recipe)],
        ["-m", "pipeline", "export", str(recipe)],
        ["-m", "pipeline", "report", str(recipe)],
        ["run_pretrain.py", str(recipe), f"run.resume={HF}"],
        ["run_pretrain.py", str(recipe), f"optm.lr={HF}"],
        ["run_pretrain.py", str(recipe), f"--token={WANDB}"],
        ["-m", "data_prep", "prepare", str(recipe), f"--token={WANDB}"],
        ["-m", "pipeline", "run", str(recipe), f"--password={AWS}"],
    ]
    codes = []
    for command in commands:
        result = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env={**environment(), **FAKES},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        said += result.stdout + result.stderr
        codes.append(result.returncode)
    assert codes == [0, 0, 0, 2, 2, 2, 2, 2], said
    written = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert any(p.name == "command.txt" for p in written)
    for secret in (HF, WANDB, AWS, *FAKES.values()):
        assert secret not in said
        assert [p for p, content in written.items() if secret.encode() in content] == []

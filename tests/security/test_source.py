"""What the source itself promises: no code from text, no shell, no pickle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep import submit
from data_prep.errors import RecipeError

ROOT = Path(__file__).parents[2]
FILES = sorted(
    [ROOT / "run_pretrain.py"]
    + [path for top in ("data_prep", "pipeline", "benchmarks", "examples")
       for path in (ROOT / top).rglob("*.py")]
)  # fmt: skip
_RUNS_TEXT = {"eval", "exec", "compile", "__import__", "execfile"}
_SHELLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn",
    "commands.getoutput", "asyncio.create_subprocess_shell",
}  # fmt: skip
_PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
_UNPACKS = {"extract", "extractall", "unpack_archive"}
# Arguments that keep a loader from running what a file says.
_SAFE = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}


def dangers(tree: ast.AST) -> Iterator[str]:
    """Every place of a file that could run what it reads, as `line: what`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {name.split(".")[0] for name in names} & _PICKLES:
                yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and (what := _dangerous(node)):
            yield f"{node.lineno}: {what}"


def _dangerous(call: ast.Call) -> str | None:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in _RUNS_TEXT | _SHELLS or name.rpartition(".")[2] in _UNPACKS:
        return name
    if given.get("shell", "False") != "False":
        return f"{name} with a shell"
    if name in _SAFE and given.get(_SAFE[name][0]) != _SAFE[name][1]:
        return f"{name} without {'='.join(_SAFE[name])}"
    if name.startswith("yaml.") and name.endswith("load") and name != "yaml.safe_load":
        return None if given.get("Loader") == "_Loader" else name
    if name.endswith("import_module") and not isinstance(call.args[0], ast.Constant):
        return f"{name} of a name that is not written here"
    if name.endswith("from_pretrained") and given.get("trust_remote_code") != "False":
        return f"{name} without trust_remote_code=False"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert list(dangers(ast.parse(path.read_text("utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "exec(text)", "compile(a, b, 'exec')", "os.system('ls')", "os.popen('ls')",
        "subprocess.run(line, shell=True)", "subprocess.run(line, shell=flag)", "import pickle",
        "from pickle import load", "import dill.source", "torch.load(path)", "np.load(path)",
        "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)", "yaml.unsafe_load(text)", "tar.extractall(folder)",
        "importlib.import_module(name)", "AutoModel.from_pretrained(folder)",
        "def f():\n  return __import__(name)",
    ],
)  # fmt: skip
def test_what_could_run_text_is_seen(code: str) -> None:
    assert len(list(dangers(ast.parse(code)))) == 1


def test_what_is_safe_is_let_alone() -> None:
    code = (
        "model.eval()\nre.compile('a')\nyaml.safe_load(t)\nsubprocess.run(['ls', name])\n"
        "torch.load(p, weights_only=True)\nast.literal_eval(t)\ntorch.compile(model)"
    )
    assert list(dangers(ast.parse(code))) == []


@pytest.mark.parametrize(
    ("partition", "time", "logs"),
    [
        ("cpu\nrm -rf x", "1:00:00", "logs"), ("cpu; id", "1:00:00", "logs"),
        ("cpu", "$(id)", "logs"), ("cpu", "1:00:00", "my logs"), ("cpu", "1:00:00", "logs`id`"),
        ("cpu", "1:00:00", "a'b"), ("cpu", "1:00:00", "a\n#SBATCH --wrap=id"), ("", "1:00", "logs"),
    ],
)  # fmt: skip
def test_no_value_becomes_a_command_of_a_job_script(partition: str, time: str, logs: str) -> None:
    pytest.importorskip("datatrove", reason="datatrove is optional: pip install datatrove")
    cluster = submit.Cluster("slurm", 1, time=time, partition=partition)
    with pytest.raises(RecipeError, match="shell of the job script"):
        submit._executor(None, cluster, logs)

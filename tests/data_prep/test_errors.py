from __future__ import annotations

import pytest

from data_prep import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RecipeError, 2),
        (errors.DataError, 3),
        (errors.Diverged, 4),
        (errors.StoppedAndSaved, 75),
    ],
)
def test_foreseen_failures_are_one_line(
    error: type[Exception], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> None:
        raise error("what " + argv[0])

    assert errors.run_main(main, ["x"]) == code
    assert capsys.readouterr().err == "error: what x\n"


def test_defects_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        errors.run_main(lambda argv: 1 // 0, [])


def test_interrupt_and_success() -> None:
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    assert errors.run_main(interrupted, []) == 130
    assert errors.run_main(lambda argv: None, []) == 0

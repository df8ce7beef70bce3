"""One trial of every fault; `python -m tests.faults.trials` draws hundreds."""

from __future__ import annotations

import pytest

from tests.faults.disks import ON_A_DISK_OF_ITS_OWN, can_mount
from tests.faults.scene import Scene
from tests.faults.trials import FAULTS, run_trial

# What no other test of the short suite does to a run.
SHORT = ("killed_in_a_save", "damaged_checkpoint", "no_number", "full_disk", "killed_in_an_export")


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    return {}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(
            fault, kind, marks=[] if fault in SHORT and kind == "mlstm" else pytest.mark.long
        )
        for fault in FAULTS
        for kind in ("mlstm", "transformer")
    ],
)
def test_a_fault_is_survived(
    scenes: dict[str, Scene], tmp_path_factory: pytest.TempPathFactory, fault: str, kind: str
) -> None:
    if fault in ON_A_DISK_OF_ITS_OWN and not can_mount():
        pytest.skip("a small disk cannot be mounted here")
    if kind not in scenes:
        scenes[kind] = Scene(tmp_path_factory.mktemp(kind), kind)
    assert run_trial(scenes[kind], fault, 1) is None

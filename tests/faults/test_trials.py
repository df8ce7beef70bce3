"""One trial of every fault; `python -m tests.faults.trials` draws hundreds."""

from __future__ import annotations

import pytest

from tests.faults.disks import ON_A_DISK_OF_ITS_OWN, can_mount
from tests.faults.scene import Scene
from tests.faults.trials import FAULTS, run_trial

MODELS = {fault: ("mlstm", "transformer")[number % 2] for number, fault in enumerate(FAULTS)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    return {kind: Scene(tmp_path_factory.mktemp(kind), kind) for kind in ("mlstm", "transformer")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_survived(scenes: dict[str, Scene], fault: str) -> None:
    if fault in ON_A_DISK_OF_ITS_OWN and not can_mount():
        pytest.skip("a small disk cannot be mounted here")
    assert run_trial(scenes[MODELS[fault]], fault, 1) is None

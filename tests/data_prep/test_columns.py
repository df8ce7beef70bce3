"""Arrow columns, beside what pyarrow itself makes."""

from __future__ import annotations

import numpy as np
import pyarrow as arrow
import pytest
from conftest import run
from hypothesis import given
from hypothesis import strategies as st

from data_prep.columns import binary, numbers, strings, vector


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_numbers(dtype: type, count: int) -> None:
    values = np.arange(2 * count, dtype=dtype)[::2]
    made = numbers(values)
    assert made.equals(arrow.array(values.tolist(), arrow.from_numpy_dtype(dtype)))
    made.validate(full=True)
    assert vector(made).tolist() == values.tolist() and vector(made).dtype == dtype
    assert vector(made[1:]).tolist() == values[1:].tolist()


def test_numbers_of_nothing_that_pyarrow_made() -> None:
    assert vector(arrow.array([], arrow.uint64())).tolist() == []


@given(st.lists(st.binary(max_size=5)))
def test_binary(raws: list[bytes]) -> None:
    made = binary(raws)
    made.validate(full=True)
    assert made.equals(arrow.array(raws, arrow.binary()))


@given(st.lists(st.none() | st.text(max_size=5)))
def test_strings(values: list[str | None]) -> None:
    made = strings(values)
    made.validate(full=True)
    assert made.equals(arrow.array(values, arrow.string()))
    assert made.null_count == values.count(None)


def test_preparing_does_without_pandas(recipe: object) -> None:
    """Which takes longer to import than a small corpus to prepare."""
    code = (
        "import sys; from data_prep.prepare import prepare\n"
        "for more in (['data.order=source', 'data.duplicates.exact=false'],\n"
        "             ['data.folder=shuffled', 'data.sources.0.id_field=id']):\n"
        "    prepare('recipe.yaml', more, workers=1)\n"
        "sys.exit('pandas' in sys.modules)"
    )
    status, said = run("-c", code)
    assert status == 0, said

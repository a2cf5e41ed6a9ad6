from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddp_bp.data.csv_file import read_csv
from ddp_bp.errors import DataError

TABLE = [[1.5, -2.0, 0.0], [3.0, 4e-3, 1.0], [5.0, 6.0, 0.0]]
HEADER = "width,height,kind\n"
BODY = "1.5,-2,0\n3,4e-3,1\n5,6,0\n"


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def complaint(path: Path, target: str | None = None) -> str:
    with pytest.raises(DataError) as raised:
        read_csv(path, target)
    text = str(raised.value)
    assert str(path) in text
    return text


@pytest.mark.parametrize(
    "content",
    [
        BODY,
        HEADER + BODY,
        BODY.rstrip("\n"),
        BODY + "\n\n",
        "\n" + HEADER + "\n" + BODY,
        (HEADER + BODY).replace("\n", "\r\n"),
        (HEADER + BODY).replace("\n", "\r"),
        (HEADER + BODY).replace(",", ";"),
        BODY.replace(",", "\t"),
        HEADER + BODY.replace(",", " , "),
        '"width","height, in m","kind"\n"1.5","-2","0"\n3,4e-3,1\n5,6,0\n',
        '"wi\ndth",height,kind\n' + BODY,
        b"\xef\xbb\xbf" + BODY.encode(),
        b"\xef\xbb\xbf" + (HEADER + BODY).encode(),
        BODY + "   \n",
        "width,2,kind\n" + BODY,
    ],
)
def test_every_way_of_writing_the_same_table_reads_the_same(tmp_path: Path, content: str | bytes) -> None:
    source = read_csv(written(tmp_path, content), None)
    np.testing.assert_array_equal(source.inputs, [row[:2] for row in TABLE])
    np.testing.assert_array_equal(source.targets, [row[2] for row in TABLE])


@pytest.mark.parametrize("target", ["width", "0", "-3", "-2", "height"])
def test_the_target_is_chosen_by_name_or_number(tmp_path: Path, target: str) -> None:
    source = read_csv(written(tmp_path, HEADER + BODY), target)
    column = {"width": 0, "0": 0, "-3": 0, "-2": 1, "height": 1}[target]
    np.testing.assert_array_equal(source.targets, [row[column] for row in TABLE])
    assert source.columns == tuple(np.delete(["width", "height", "kind"], column))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (HEADER + "1,2,0\n1,red,1\n", "line 3, column 1 ('height'): 'red' is not a number"),
        ("1,2,cat\n3,4,dog\n", "line 1, column 2: 'cat' is not a number"),
        ("a,b,c\n1,2,0\n\n\n1,,0\n", "line 5, column 1 ('b'): the field is empty"),
        ("1,2,0\n1,2\n", "line 2: expected 3 columns as in the first line, got 2"),
        ("1,2,0\n\n1,2,0,4\n", "line 3: expected 3 columns as in the first line, got 4"),
        ("a,b\n1,2,0\n1,2,0\n", "line 2: expected 2 columns as in the first line, got 3"),
        ("1,2,0\n1,nan,0\n", "line 2, column 1: 'nan' is not a finite number"),
        ("1,2,0\n1,2,-inf\n", "line 2, column 2: '-inf' is not a finite number"),
        ("1,2,0\n1,1e999,0\n", "line 2, column 1: '1e999' is not a finite number"),
        ("1;2;0\n1;2,5;0\n", "line 2, column 1: '2,5' is not a number; write it with a decimal point"),
        ("1,2,0\n1,1_000,0\n", "line 2, column 1: '1_000' is not a number"),
        ('"a\nb",c\n1,2\nx,2\n', "line 4, column 0 ('a\\nb'): 'x' is not a number"),
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("a,b,c\n\n", "no line after the header"),
        ("1\n2\n", "at least two columns are needed"),
        ("a b c\n1 2 3\n", "at least two columns are needed"),
        (b"1,2\n\xff,3\n", "not UTF-8"),
        ("1,2\n1,\x002\n", "'\\x002' is not a number"),
        ("1,2\n" + "1" * 200_000 + ",2\n1,a\n", "not a readable CSV file"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: str | bytes, expected: str) -> None:
    assert expected in complaint(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "target", "expected"),
    [
        (HEADER + BODY, "hieght", "it has 'width', 'height', 'kind'; did you mean 'height'?"),
        (HEADER + BODY, "3", "3 columns, numbered 0 to 2: there is no target column 3"),
        (HEADER + BODY, "-4", "there is no target column -4"),
        (BODY, "kind", "no header, so there is no target column 'kind'; give its number, 0 to 2"),
        ("a,b,a\n1,2,3\n", "a", "several columns are named 'a'"),
    ],
)
def test_a_bad_target_column_is_named(tmp_path: Path, content: str, target: str, expected: str) -> None:
    assert expected in complaint(written(tmp_path, content), target)


def test_rows_are_found_again_by_line_number(tmp_path: Path) -> None:
    source = read_csv(written(tmp_path, "\n" + HEADER + "\n1,2,0\n\n1,2,1\n"), None)
    assert [source.where(0), source.where(1)] == ["line 4", "line 6"]


def test_without_check_values_that_are_not_finite_pass(tmp_path: Path) -> None:
    assert np.isnan(read_csv(written(tmp_path, "1,nan,0\n1,2,0\n"), None, check=False).inputs[0, 1])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(2, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=width, max_size=width), min_size=1
        )
    ),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_the_csv_module_writes_is_read_bit_for_bit(
    tmp_path: Path, table: list[list[float]], delimiter: str, quoting: int
) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(table)
    source = read_csv(path, None)
    np.testing.assert_array_equal(np.column_stack([source.inputs, source.targets]), table)

"""The command on files: delimiters, encodings, messages and exit codes."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from divjax.__main__ import main
from divjax.tables.files import read_table


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1, "openmp"):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of one distribution, and one whose first column is shifted."""
    folder = tmp_path_factory.mktemp("files")
    for seed, name, shift in ((0, "a.csv", 0), (1, "b.csv", 0), (2, "shifted.csv", 1)):
        rows = np.array([shift, 0]) + np.random.default_rng(seed).normal(size=(300, 2))
        pd.DataFrame(rows, columns=["x", "y"]).to_csv(folder / name, index=False)
    return folder


def run(files, *arguments):
    first, second = (str(files / name) for name in arguments[:2])
    return main(["compare", first, second, "--quick", *map(str, arguments[2:])])


def test_text_is_printed_and_equal_tables_pass(files, capsys):
    assert run(files, "a.csv", "b.csv", "--fail-on", "different") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("No difference found")
    assert "300 of a.csv, 300 of b.csv" in shown


def test_different_tables_fail_where_asked(files, capsys):
    assert run(files, "a.csv", "shifted.csv") == 0
    assert run(files, "a.csv", "shifted.csv", "--fail-on", "different", "--json") == 1
    shown = capsys.readouterr().out
    content = json.loads(shown[shown.index("\n{") :])
    assert content["verdict"]["columns"] == ["x"]


def test_results_go_into_files(files, tmp_path, capsys):
    outputs = [tmp_path / name for name in ("r.json", "r.csv", "r.html")]
    options = zip(("--json", "--csv", "--html"), outputs, strict=True)
    assert run(files, "a.csv", "b.csv", *[part for pair in options for part in pair]) == 0
    assert json.loads(outputs[0].read_text())["names"] == ["a.csv", "b.csv"]
    assert outputs[1].read_text().startswith("column,js,error")
    assert "<h1>a.csv and b.csv</h1>" in outputs[2].read_text()
    assert capsys.readouterr().out.startswith("No difference found")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.csv", "none.csv"], "there is no file"),
        (["a.csv", "b.csv", "--id", "z"], r"ids must name columns of both tables; got ['z']"),
        (["a.csv", "b.csv", "--date-format", "d"], "date_format must be a format of strptime"),
        (["a.csv", "b.csv", "--drop", "z"], r"drop must name columns of either table; got ['z']"),
        (["a.csv", "b.csv", "--level", "2"], "level"),
        (["a.csv", "b.csv", "--level", "much"], "invalid float value"),
        (["a.csv", "b.csv", "--html", "no/where.html"], "there is no folder for"),
    ],
)
def test_what_cannot_be_used_is_named_with_exit_code_2(files, capsys, arguments, message):
    assert run(files, *arguments) == 2
    assert message in capsys.readouterr().err


def test_what_would_fail_or_do_harm_at_the_end_is_refused_at_once(
    files, tmp_path, capsys, monkeypatch
):
    # Nothing is computed: a table of one column would be refused for its lack of rows.
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("a\n1\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "one.csv")
    for options, message in (
        (["--csv", tmp_path], "is a folder, not a file"),
        (["--csv", tmp_path / "one.csv"], "would be replaced"),
        (["--json", tmp_path / "link.csv"], "would be replaced"),
        (["--csv", tmp_path / "r", "--html", tmp_path / "." / "r"], "must name different files"),
    ):
        assert run(tmp_path, "one.csv", "two.csv", *options) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "one.csv").read_text() == "a\n1\n"
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)
        assert run(tmp_path, "one.csv", "two.csv", "--csv", tmp_path / "r") == 2
        assert "may not be written" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.pyplot", None)
        assert run(tmp_path, "one.csv", "two.csv", "--html", tmp_path / "r") == 2
        assert "matplotlib" in capsys.readouterr().err


def test_numbers_are_shown_though_figures_fail(files, tmp_path, capsys, monkeypatch):
    def fail(comparison):
        raise ValueError("no figure")

    monkeypatch.setattr("divjax.tables.report.to_html", fail)
    assert run(files, "a.csv", "b.csv", "--html", tmp_path / "r.html") == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("No difference found")
    assert "no figure" in shown.err


def test_a_folder_or_an_empty_file_is_no_table(files, tmp_path, capsys):
    (tmp_path / "empty.csv").touch()
    assert main(["compare", str(files), str(files / "a.csv")]) == 2
    assert main(["compare", str(files / "a.csv"), str(tmp_path / "empty.csv")]) == 2
    assert "empty.csv must hold a header and rows; it is empty" in capsys.readouterr().err


def test_usage_is_refused_and_help_is_not(capsys):
    assert main([]) == 2
    assert main(["compare"]) == 2
    assert main(["--help"]) == 0
    assert "compare" in capsys.readouterr().out


def test_a_missing_file_is_answered_without_jax_or_pandas():
    code = (
        "import sys; from divjax.__main__ import main; rc = main(['compare', 'no.csv', 'no.csv']); "
        "sys.exit(rc if not {'jax', 'pandas'} & set(sys.modules) else 7)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 2


def test_divjax_is_imported_without_pandas_and_tables_say_what_to_install():
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "import divjax\n"
        "try: divjax.tables\n"
        "except ImportError as error: print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "divjax[tables]"' in shown.stdout


def test_info_names_versions_and_devices(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for word in ("divjax 0", "jax ", "devices: ", "precision: float32", "compilation cache: "):
        assert word in shown


@pytest.mark.parametrize(
    ("delimiter", "word"), [(",", None), (";", "semicolons"), ("\t", "tabs"), ("|", "bars")]
)
def test_delimiters_are_found(tmp_path, delimiter, word):
    lines = [["a", "b"], ["1", "x y"], ["2.5", "z"]]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(delimiter.join(line) for line in lines))
    table, notes = read_table(path)
    assert table["a"].tolist() == [1, 2.5]
    assert table["b"].tolist() == ["x y", "z"]
    assert notes == (() if word is None else (f"t.csv: fields are separated by {word}",))


def test_decimal_commas_are_left_to_the_reader(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a;b\n1,5;x\n2,5;y\n")
    assert read_table(path)[0]["a"].tolist() == ["1,5", "2,5"]


@pytest.mark.parametrize(
    ("encoding", "note"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("latin-1", "t.csv: not UTF-8, read as Windows-1252"),
        ("utf-16", "t.csv: read as UTF-16"),
    ],
)
def test_encodings_are_found(tmp_path, encoding, note):
    path = tmp_path / "t.csv"
    path.write_text("größe,ort\n1,Köln\n", encoding=encoding)
    table, notes = read_table(path)
    assert list(table) == ["größe", "ort"]
    assert table["ort"][0] == "Köln"
    assert notes == (() if note is None else (note,))


def test_what_windows_writes_is_the_same_text_as_utf_8(tmp_path):
    tables = []
    for encoding in ("cp1252", "utf-8"):
        path = tmp_path / f"{encoding}.csv"
        path.write_text("preis,ort\n€ 5,“Köln”\n€ 6,“Bonn”\n", encoding=encoding)
        tables.append(read_table(path)[0])
    pd.testing.assert_frame_equal(*tables)
    # A byte without a letter there.
    (tmp_path / "t.csv").write_bytes(b"a\n\x81\xe4\n")
    table, notes = read_table(tmp_path / "t.csv")
    assert table["a"][0] == "\x81ä"
    assert notes == ("t.csv: not UTF-8, read as Latin-1",)


@pytest.mark.parametrize("blank", ["\n\n", "  \n", "\r\n"])
def test_blank_lines_before_the_header_are_passed_over(tmp_path, blank):
    path = tmp_path / "t.csv"
    path.write_bytes(f"{blank}a;b\n1;2\n".encode())
    assert read_table(path)[0].to_dict("list") == {"a": [1], "b": [2]}


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"a,b\n1,2\n", mtime=0),
        b"PK\x03\x04\n\x00\x00",  # a workbook begins so
        "a,b\n1,2\n".encode("utf-16-le"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.csv must be text with a header and rows; it is bin"):
        read_table(path)


@pytest.mark.parametrize("start", [0, 1])
def test_a_nameless_column_that_counts_rows_is_left_out(tmp_path, start):
    path = tmp_path / "t.csv"
    path.write_text(",a\n" + "".join(f"{start + k},{k % 2}\n" for k in range(5)))
    table, notes = read_table(path)
    assert list(table) == ["a"]
    assert notes == ("t.csv: the first column has no name and counts the rows: left out",)


def test_codes_stay_text_and_question_marks_are_missing(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("zip,card,n\n01234,12345678901234567890,1\n20001,2,?\n")
    table, _ = read_table(path)
    assert table["zip"].tolist() == ["01234", "20001"]
    assert table["card"][0] == "12345678901234567890"
    assert table["n"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,a\n1,2,3\n", r"t.csv must name its columns uniquely; got twice: \['a'\]"),
        ("a,b\n1,2,3\n4,5,6\n", "lines of as many fields as its header"),
        (" \n", "t.csv must hold a header and rows"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(path)

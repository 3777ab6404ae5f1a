"""The journal: what a killed process leaves can be read, and nothing is lost or doubled."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftdiff.errors import SftdiffError
from sftdiff.journal import Journal
from tests.commands import environment
from tests.fault_proxy import kill


def test_records_come_back_with_keys_of_both_kinds(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "j.jsonl") as journal:
        journal.write(("a", 1), {"text": "line\nbreak \u2028 \ud800"})
        journal.write("a", [1, None])
        journal.write(("a", 1), {"text": "newer"})
    with Journal(tmp_path / "deep" / "j.jsonl") as journal:
        assert list(journal.items()) == [("a", [1, None]), (("a", 1), {"text": "newer"})]
        assert ("a", 1) in journal and ("a", 2) not in journal and len(journal) == 2
        assert journal.get(("b", 1)) is None


def test_counts_what_was_in_flight_when_the_process_died(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for key in "abcd":
            journal.start(key, 0.5)
        journal.write("a", 1)
        journal.drop("b")
    with Journal(tmp_path / "j") as journal:
        assert (journal.in_flight, journal.lost, journal.lost_dollars) == (2, 2, 1.0)
        journal.start("c", 0.25)
        journal.write("c", 2)
    with Journal(tmp_path / "j") as journal:
        assert (journal.in_flight, journal.lost, journal.lost_dollars) == (1, 2, 1.0)


@given(cut=st.integers(0, 200))
def test_a_torn_file_keeps_all_whole_lines_and_can_be_written_on(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "j"
    with Journal(path) as journal:
        for n in range(5):
            journal.write(("key", n), {"text": "x" * n})
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    with Journal(path) as journal:
        assert len(journal) == data.count(b"\n")
        journal.write("new", 1)
    with Journal(path) as journal:
        assert len(journal) == data.count(b"\n") + 1 and journal.get("new") == 1


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"key":"a"}', '{"key":{"a":1},"record":1}', '{"start":"a"}', "\0\0"])
def test_a_damaged_line_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j"
    good = json.dumps({"key": "a", "record": 1})
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(SftdiffError, match=rf"{path}, line 2, is damaged"):
        Journal(path)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    script = f"from pathlib import Path; from sftdiff.journal import Journal; Journal(Path({str(tmp_path / 'j')!r})).start('a')"
    with Journal(tmp_path / "j") as journal:
        journal.write("a", 1)
        second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=False)
        assert "another process writes to it" in second.stderr
    with Journal(tmp_path / "j") as journal:
        assert journal.in_flight == 0


def test_kill_minus_nine_while_writing_loses_no_record_that_was_written(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from sftdiff.journal import Journal; import itertools\n"
        f"journal = Journal(Path({str(tmp_path / 'j')!r}))\n"
        "for n in itertools.count():\n"
        "    journal.write(('key', n), 'x' * 5000); print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout
    for line in process.stdout:
        if int(line) >= 200:
            break
    kill(process)
    told = max([200, *(int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n"))])
    with Journal(tmp_path / "j") as journal:
        assert [key for key, _ in journal.items()] == [("key", n) for n in range(len(journal))]
        assert len(journal) in (told + 1, told + 2)

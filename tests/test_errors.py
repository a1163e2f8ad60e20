"""What a user sees of an error: one line and an exit code, never a traceback unless asked for."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from torch.utils.data import DataLoader, Dataset

from scenekd.errors import BadRecordError, UserError, run_cli


def _raiser(error):
    def main():
        raise error

    return main


def _exit(error, capsys, **options):
    with pytest.raises(SystemExit) as caught:
        run_cli(_raiser(error), debug=False, **options)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return caught.value.code, captured.err.rstrip("\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("SOLVER.STEPS: bad; do this"), "error: SOLVER.STEPS: bad; do this"),
        (UserError("a.yaml: first\n   second\n"), "error: a.yaml: first second"),
        (BadRecordError("x.jpg: truncated"), "error: x.jpg: truncated"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"),
            "error: a/b: No such file or directory",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "error: a: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), "error: a: Is a directory"),
        (FileNotFoundError("a/b does not exist"), "error: a/b does not exist"),
    ],
)
def test_a_user_s_error_is_one_line(error, line, capsys):
    """Exit code 2 and one line on stderr."""
    assert _exit(error, capsys) == (2, line)


@pytest.mark.parametrize("name", ["out/model.pth", None])
def test_full_disk(name, capsys):
    """No space left: what to do, with the file where it is known."""
    error = OSError(errno.ENOSPC, "No space left on device")
    error.filename = name
    code, line = _exit(error, capsys)
    assert code == 2
    assert line.startswith(f"error: {name or 'output'}: no space left")


def test_ctrl_c(capsys):
    """Ctrl-C is one line, and says how to go on."""
    code, line = _exit(KeyboardInterrupt(), capsys)
    assert code == 2 and line.startswith("interrupted; ")


@pytest.mark.parametrize("error", [ZeroDivisionError("ours"), ValueError("ours"), OSError(errno.EIO, "disk")])
def test_our_own_mistakes_keep_their_traceback(error):
    """An error that no user caused is not hidden."""
    with pytest.raises(type(error)) as caught:
        run_cli(_raiser(error), debug=False)
    assert caught.value is error


def test_debug_shows_the_traceback(monkeypatch):
    """By argument, by --debug on the command line, or by the environment."""
    error = UserError("x")
    with pytest.raises(UserError):
        run_cli(_raiser(error), debug=True)
    monkeypatch.delenv("SCENEKD_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", ["tool", "--debug"])
    with pytest.raises(UserError):
        run_cli(_raiser(error))
    monkeypatch.setattr(sys, "argv", ["tool"])
    with pytest.raises(SystemExit):
        run_cli(_raiser(error))
    monkeypatch.setenv("SCENEKD_DEBUG", "1")
    with pytest.raises(UserError):
        run_cli(_raiser(error))


def test_success_returns():
    """A tool that ends well exits with nothing."""
    assert run_cli(lambda: 3, debug=False) is None


class _Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BadRecordError("x.jpg: truncated JPEG; replace it"), "error: x.jpg: truncated JPEG; replace it"),
        (UserError("two\nlines: here"), "error: two lines: here"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.jpg"),
            "No such file or directory: 'a.jpg'",
        ),
    ],
)
def test_errors_of_data_workers(error, line, capsys):
    """Torch puts a worker's traceback into the message; the user sees the message alone."""
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda: list(DataLoader(_Broken(error), num_workers=1)), debug=False)
    shown = capsys.readouterr().err
    assert caught.value.code == 2
    assert shown.rstrip("\n").endswith(line)
    assert "Traceback" not in shown
    assert shown.count("\n") == 1


_TOOL = """
import sys
from scenekd.errors import UserError, run_cli

def main():
    if sys.argv[1] == "user":
        raise UserError("DATASETS.ROOT: nothing there; set it")
    if sys.argv[1] == "bug":
        raise RuntimeError("a mistake of ours")
    print("line\\n" * 100_000)

run_cli(main)
"""


def _tool(*args, **options):
    env = {k: v for k, v in os.environ.items() if k != "SCENEKD_DEBUG"}
    return subprocess.Popen(
        [sys.executable, "-c", _TOOL, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        **options,
    )


def test_a_real_process():
    """Exit codes and stderr as a shell sees them."""
    user, bug, debug = (_tool(*args) for args in (["user"], ["bug"], ["user", "--debug"]))
    assert user.communicate() == ("", "error: DATASETS.ROOT: nothing there; set it\n")
    assert user.returncode == 2
    assert "Traceback" in bug.communicate()[1]
    assert bug.returncode == 1
    assert "Traceback" in debug.communicate()[1]
    assert debug.returncode == 1


def test_a_reader_that_goes_away():
    """`tool | head` is no error of the tool's: no traceback."""
    process = _tool("print")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141

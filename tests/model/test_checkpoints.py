"""What can go wrong while a checkpoint is written: a disk that fills, a tokenizer with folders of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from algorist.errors import RunError, explain_full_disk
from algorist.model import checkpoints
from algorist.model.chat import load_tokenizer
from algorist.records import Checkpoint
from algorist.toy import words
from model import tiny

FULL = "the disk is full. Free some space and run the same command again; what is finished is kept."


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("free", [20, 100])  # KiB: the weights take 80, then come 16 of small files and tokenizer.json
def test_a_disk_that_fills_while_a_checkpoint_is_written(disk: Path, free: int) -> None:
    """The weights do not fit, or the tokenizer behind them; the checkpoint that stood there stays."""
    policy, tokenizer = tiny.policy(), words.tokenizer()
    card = checkpoints.save(disk / "c", policy, tokenizer, Checkpoint("", "sft", 1))
    left = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "fill").write_bytes(bytes(left - free * 1024))
    with pytest.raises(RunError) as error:
        checkpoints.save(disk / "c", policy, tokenizer, Checkpoint("", "sft", 2))
    assert str(error.value) == f"{disk / 'c'}: {FULL}"
    assert checkpoints.card(disk / "c") == card and not list(disk.glob(".*"))
    (disk / "fill").unlink()
    assert checkpoints.save(disk / "c", policy, tokenizer, Checkpoint("", "sft", 2)).step == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
        Exception("No space left on device (os error 28)"),  # tokenizers
    ],
)
def test_a_full_disk_has_one_message_whoever_met_it(error: Exception) -> None:
    with pytest.raises(RunError) as found, explain_full_disk(Path("runs/a")):
        raise error
    assert str(found.value) == f"runs/a: {FULL}" and found.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied"), SafetensorError("Permission denied (os error 13)"), ValueError("28")],
)
def test_other_errors_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)) as found, explain_full_disk(Path("runs/a")):
        raise error
    assert found.value is error


def test_a_tokenizer_with_named_chat_templates_is_saved(tmp_path: Path) -> None:
    tokenizer = words.tokenizer()
    named = {"default": words.TEMPLATE, "rag": "{{ messages }}"}
    tokenizer.chat_template = named
    checkpoints.save(tmp_path / "c", tiny.policy(), tokenizer, Checkpoint("", "sft", 1))
    assert (tmp_path / "c" / "additional_chat_templates" / "rag.jinja").is_file()
    assert load_tokenizer(str(tmp_path / "c")).chat_template == named

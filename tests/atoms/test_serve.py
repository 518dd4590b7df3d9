"""RemoteChat against ``transformers serve`` with the packaged SmolLM2, on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers.utils import is_serve_available

from gradatoms.labels.chat import Answer, Question
from gradatoms.labels.chat_teacher import ChatTeacher
from gradatoms.labels.evidence import Evidence, Shown
from gradatoms.labels.label import Label, LabelFailure
from gradatoms.labels.remote import RemoteChat
from gradatoms.models import LoadedModel, cache_dir

COPY = '{"word": "hello"}'


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    folder: Path
    log: Path

    def requests(self) -> int:
        return self.log.read_text().count('POST /v1/chat/completions HTTP/1.1" 200')


@pytest.fixture(scope="module")
def served(smollm2: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The converted SmolLM2 behind a server of its own."""
    if not is_serve_available():
        pytest.skip("needs the server of transformers: pip install 'transformers[serving]'")
    folder = Path(str(smollm2.tokenizer.name_or_path))
    assert folder.is_relative_to(cache_dir())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1"]
    options = ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *options], env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield Served(f"http://127.0.0.1:{port}/v1", folder, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


def test_labels_and_answers_from_a_real_server(served: Served, smollm2: LoadedModel, tmp_path: Path) -> None:
    chat = RemoteChat(
        str(served.folder), base_url=served.url, cache=tmp_path, concurrency=1, timeout_s=300.0, retries=0
    )
    schema = {
        "type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"], "additionalProperties": False,
    }  # fmt: skip
    # The server does not hold the model to a form, and this model does not stop by itself: the limit does.
    length = len(smollm2.tokenizer(COPY).input_ids)
    [(_, answer)] = chat.ask([Question("Answer with JSON only.", f"Copy this: {COPY}", schema, length)])
    assert answer == Answer({"word": "hello"})
    assert chat.budget.spent_tokens > length, "the server reports what it used"

    evidence = [
        Evidence(atom=0, top=(Shown("The capital of France is", " Paris", None, 1.0),)),
        Evidence(atom=1, top=(Shown("The past tense of go is", " went", None, 1.0),)),
    ]
    teacher = ChatTeacher(chat, max_tokens=12)
    rows = sorted(teacher.label(evidence), key=lambda row: row.atom)
    assert [row.atom for row in rows] == [0, 1]
    for row in rows:
        assert row.teacher == f"openai:{served.folder}" and row.prompt == teacher.prompt_version()
        assert isinstance(row, Label) or (isinstance(row, LabelFailure) and row.kind == "malformed"), row
    sent = served.requests()
    assert 3 <= sent <= 7
    assert sorted(teacher.label(evidence), key=lambda row: row.atom) == rows
    assert served.requests() == sent, "what is answered is not asked for again"
    estimate = chat.estimate(teacher.questions(evidence))
    assert (estimate.requests, estimate.cached) == (0, 2)

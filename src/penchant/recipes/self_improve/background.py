"""Learning from a server's traffic, inside the server's process: it stores answers, watches the process, swaps models.

OUTPUT/config.json, OUTPUT/inputs.json     the settings, and fingerprints of the model and the verifier
OUTPUT/traffic.sqlite                      answers until they are judged, held-out prompts, counts
OUTPUT/buffer.sqlite                       the groups that updates draw from
OUTPUT/served.json                         the served learner
OUTPUT/updates/N/                          updates, as the recipe's; of those not served begun.json and result.json stay
OUTPUT/learning.log                        output of the process that learns
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any

from penchant.api import Text, folder_lock, read_record
from penchant.recipes.self_improve.background_process import open_traffic
from penchant.recipes.self_improve.config import TrafficConfig
from penchant.recipes.self_improve.gate import gate_note
from penchant.recipes.self_improve.learner import DAMAGED, ServedModel, read_served, update_folder, write_served
from penchant.recipes.self_improve.run_folder import build_backend, make_folder, open_buffer, record_configuration
from penchant.recipes.self_improve.traffic import NewAnswer
from penchant.recipes.self_improve.trainer import ERROR, RESULT, is_running, next_update

logger = logging.getLogger(__name__)

LOG = "learning.log"
PAUSE = 0.2
"""Seconds between two looks at the traffic, the process and the served learner."""
MAX_QUEUE = 10_000
"""Maximum number of answers in memory, which wait to be stored; further ones are counted as lost."""
MAX_RESTART_PAUSE = 300.0
"""Maximum seconds before the process is started again; the pause doubles with each end in a row."""
SHOWN_UPDATES = 20
"""Number of updates, the latest, in the status."""


class BackgroundLearning:
    """Learning from the answers of one expert of a server; its folder is locked inside the context.

    Args:
        config: the settings.
        expert: name of the expert.

    Attributes:
        expert: name of the expert.
        served: the learner that the server has loaded; at first the one that an earlier server of this folder served.

    Raises:
        PenchantError: the folder belongs to another configuration or server, or a setting is not valid.
    """

    def __init__(self, config: TrafficConfig, expert: str) -> None:
        self.expert = expert
        self._config, self._output = config, Path(config.output)
        self._resources = ExitStack()
        self._queue: Queue[NewAnswer | str] = Queue(MAX_QUEUE)
        self._unstored: list[NewAnswer | str] = []
        self._n_lost, self._ends, self._ends_in_a_row, self._swaps = 0, 0, 0, 0
        self._error: dict[str, str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start_time, self._started_at = 0.0, 0.0
        self._stopping = threading.Event()
        self._resources.enter_context(folder_lock(self._output))
        try:
            build_backend(config).check([])
            config.verifier.open()
            make_folder(config)
            record_configuration(config)
            self._traffic, self._buffer = open_traffic(config), open_buffer(config)
        except BaseException:
            self._resources.close()
            raise
        self._resources.callback(self._traffic.close)
        self._resources.callback(self._buffer.close)
        served = read_served(self._output)
        if served is None:
            served = ServedModel(0, config.model)
            write_served(self._output, served)
        self.served = served

    def __enter__(self) -> BackgroundLearning:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    @property
    def gate_note(self) -> str:
        """A sentence on the gain that the gate can detect."""
        return gate_note(self._config, self._config.checks)

    def start(self, swap: Callable[[str], None]) -> None:
        """Begin to learn; see `penchant.serving.learning.Learning`."""
        self._swap = swap
        self._thread = threading.Thread(target=self._work, name="learning", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Store what was recorded, and stop the process; an update under way resumes at the next start."""
        self._stopping.set()
        self._thread.join()
        self._try(self._store)
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def record(self, prompt: Text, answer: str) -> None:
        """Learn from a whole answer to a prompt; returns at once."""
        self._enqueue(NewAnswer(prompt, answer, self.served.update))

    def skip(self, reason: str) -> None:
        """Count an answer that nothing is learnt from; returns at once."""
        self._enqueue(reason)

    def status(self) -> dict[str, Any]:
        """What was learnt so far, as JSON."""
        served, counts, buffer = read_served(self._output), self._traffic.counts(), self._buffer.counts()
        success = self._traffic.success()
        return {
            "expert": self.expert,
            "activity": self._activity(counts["waiting"]),
            "loaded": vars(self.served),
            "served": vars(served) if served is not None else None,
            "swaps": self._swaps,
            "traffic": {**counts, "lost": self._n_lost},
            "judged": sum(row["judged"] for row in success),
            "success": success,
            "buffer": {"pairs": self._buffer.count_added(), **{k: v for k, v in buffer.items() if k != "judgements"}},
            "checks": {"held out": len(self._traffic.checks()), "needed": self._config.checks},
            "updates": self._updates(),
            "error": self._error,
            "restarts": self._ends,
        }

    def _activity(self, waiting: int) -> str:
        """What the process does now."""
        if self._process is None or self._process.poll() is not None:
            return "stopped"
        if is_running(self._output):
            return "tuning"
        return "judging" if waiting else "waiting for answers"

    def _updates(self) -> list[dict[str, Any]]:
        """What the gate decided of the latest updates."""
        last = next_update(self._output) - 1
        updates = []
        for number in range(max(1, last - SHOWN_UPDATES + 1), last + 1):
            file = update_folder(self._output, number) / RESULT
            record = read_record(file, ("from", "served"), DAMAGED)
            finished = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
            swapped = record["served"] != record["from"]
            updates.append({"update": number, "finished": finished, "swapped": swapped} | record)
        return updates

    def _enqueue(self, item: NewAnswer | str) -> None:
        try:
            self._queue.put_nowait(item)
        except Full:
            self._n_lost += 1

    def _work(self) -> None:
        while not self._stopping.wait(PAUSE):
            for task in (self._store, self._watch_process, self._load_served):
                self._try(task)

    def _try(self, task: Callable[[], None]) -> None:
        """Run a task; an error is logged and shown, and the server goes on."""
        try:
            task()
        except Exception as error:
            self._note(f"{type(error).__name__}: {error}")

    def _note(self, message: str) -> None:
        if self._error is None or self._error["message"] != message:
            logger.warning(f"learning: {message}")
        self._error = {"message": message, "time": datetime.now(UTC).isoformat(timespec="seconds")}

    def _store(self) -> None:
        """Store what the queue holds; where that fails it is stored later."""
        try:
            while len(self._unstored) < MAX_QUEUE:
                self._unstored.append(self._queue.get_nowait())
        except Empty:
            pass
        if self._unstored:
            answers = [item for item in self._unstored if isinstance(item, NewAnswer)]
            self._traffic.add(answers, Counter(item for item in self._unstored if isinstance(item, str)))
            self._unstored.clear()

    def _watch_process(self) -> None:
        """Start the process; where it has ended, start it again after a pause."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            # An end long after the start is not one in a row.
            lived_long = time.monotonic() - self._started_at > MAX_RESTART_PAUSE
            self._ends_in_a_row = 1 if lived_long else self._ends_in_a_row + 1
            self._ends += 1
            self._start_time = time.monotonic() + min(2.0 ** (self._ends_in_a_row - 1), MAX_RESTART_PAUSE)
            self._note(self._reason(code))
        if time.monotonic() >= self._start_time:
            self._process, self._started_at = self._start(), time.monotonic()

    def _reason(self, code: int) -> str:
        """Why the process ended."""
        if (self._output / ERROR).exists():
            return str(json.loads((self._output / ERROR).read_text(encoding="utf-8"))["error"])
        return f"the process that learns ended with {code}; see {self._output / LOG}"

    def _start(self) -> subprocess.Popen[bytes]:
        (self._output / ERROR).unlink(missing_ok=True)
        module = "penchant.recipes.self_improve.background_process"
        with (self._output / LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, str(self._output), str(os.getpid())], stdout=log, stderr=log
            )

    def _load_served(self) -> None:
        """Load the learner that the gate chose, where it is not the loaded one."""
        served = read_served(self._output)
        if served is not None and served != self.served:
            self._swap(served.model)
            self.served = served
            self._swaps += 1
            logger.info(f"learning: {self.expert} answers by update {served.update}")

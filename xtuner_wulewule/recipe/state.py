"""What a run has finished, and the lock of its folder."""

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path

from xtuner_wulewule.errors import SettingsError
from xtuner_wulewule.prompts import Persona

WHOLE_FILE = 64 * 2**20  # bytes; of larger files size and time stamp are compared, not the contents


def write_json(file, value):
    """Write a value as JSON to a temporary name, and move it into place."""
    write_text(file, json.dumps(value, ensure_ascii=False, indent=1))


def write_text(file, text):
    """Write a text to a temporary name, and move it into place."""
    temporary = Path(f"{file}.part")
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def sync(place):
    """Wait until a file, or a folder with all that lies in it, is on the disk: what is noted as done must survive a power cut."""
    place = Path(place)
    for path in [*place.rglob("*"), place] if place.is_dir() else [place, place.parent]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_fingerprint(file):
    """Return what identifies the contents of a file (str)."""
    status = os.stat(file)
    if status.st_size > WHOLE_FILE:
        return f"size {status.st_size}, time {status.st_mtime_ns}"
    return f"sha256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"


def model_fingerprint(model):
    """Return what identifies a model (dict): of a folder each file, of a hub id the id."""
    if not os.path.isdir(model):
        return {"id": model}
    return {"folder": model, **{path.name: file_fingerprint(path) for path in sorted(Path(model).iterdir()) if path.is_file()}}


def digest(fingerprint):
    """Return a short name (str) of a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def differences(old, new, prefix=""):
    """Return what changed between two fingerprints (list[str]), by key."""
    changed = []
    for key in sorted({*old, *new}):
        name = f"{prefix}{key}"
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            changed += differences(old[key], new[key], f"{name} ")
        elif old.get(key) != new.get(key):
            was, now = (str(value)[:60] for value in (old.get(key), new.get(key)))
            changed.append(name if any(word in was + now for word in ("sha256", "size ")) else f"{name} ({was} -> {now})")
    return changed


class State:
    """The steps that a run has begun and finished, and its persona, in `state.json` of its folder; every change is on disk before the next
    step begins.

    Args:
        folder (pathlib.Path): the run's folder.

    Raises:
        SettingsError: the file is not one of ours.
    """

    def __init__(self, folder):
        self.file = Path(folder) / "state.json"
        self.steps, self.persona = {}, {}
        if self.file.is_file():
            try:
                found = json.loads(self.file.read_text(encoding="utf-8"))
                self.steps, self.persona = found["steps"], found.get("persona", {})
            except (ValueError, KeyError, TypeError, AttributeError):
                raise SettingsError(f"{self.file} is not a state file of wulewule run; use another --out, or move it away") from None

    def get(self, name):
        """Return the entry (dict) of a step, empty where it never began."""
        return self.steps.get(name, {})

    def begin(self, name, fingerprint):
        """Note that a step begins."""
        self.steps[name] = dict(status="running", fingerprint=fingerprint)
        self._write()

    def finish(self, name, seconds, result):
        """Note that a step has ended well, in how many seconds, and what it found."""
        self.steps[name].update(status="done", seconds=round(seconds, 1), result=result)
        self._write()

    def forget(self, names):
        """Note that steps (list[str]) have to run again."""
        known = [name for name in names if name in self.steps]
        for name in known:
            del self.steps[name]
        if known:
            self._write()

    def keep_persona(self, persona, given):
        """Note the `Persona` of the run, and what of it was given (dict[str, str]) and not found in the data; that of the package needs no
        note."""
        kept = dict(names=list(persona.names), author=persona.author, system=persona.system, given=given)
        kept = kept if given or persona != Persona() else {}
        if kept != self.persona:
            self.persona = kept
            self._write()

    def _write(self):
        write_json(self.file, dict(steps=self.steps, **({"persona": self.persona} if self.persona else {})))


def kept_persona(folder):
    """Return the `Persona` of the run in a folder (pathlib.Path), and what of it was given (dict[str, str]); None and {} without one."""
    try:
        found = json.loads((Path(folder) / "state.json").read_text(encoding="utf-8"))["persona"]
        return Persona(tuple(map(str, found["names"])), str(found["author"]), str(found["system"])), dict(found["given"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, {}


def lock_folder(folder, patience=30.0):
    """Lock a run's folder until this process and every step that it started have ended.

    Where the process that holds the lock is gone and one of its steps is still ending, that is waited for.

    Args:
        folder (pathlib.Path): an existing folder.
        patience (float): how long to wait, in seconds. Defaults to 30.

    Returns:
        typing.IO: the open lock file; closing it gives the lock back.

    Raises:
        SettingsError: another run works in the folder.
    """
    file = open(Path(folder) / ".lock", "a+", encoding="utf-8")  # stays open while the lock is held
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            alive = holder.isdigit() and _lives(int(holder))
            if alive or time.monotonic() > end:
                file.close()
                raise SettingsError(
                    f"another wulewule run (process {holder}) works in {folder}; wait for it, or use another --out"
                    if alive
                    else f"a step of a run that was killed (process {holder}) still works in {folder}; end it: fuser -k {folder}/.lock"
                ) from None
            time.sleep(0.2)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

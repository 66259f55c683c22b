"""Where things lie: packaged configs and data, the user's cache, and the two settings a config reads from the environment."""

import os
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _packaged(name):
    inside = _PACKAGE / name  # a wheel
    return inside if inside.is_dir() else _PACKAGE.parent / name  # an editable install: the checkout


def configs_dir():
    """Return the folder of the packaged configs (pathlib.Path)."""
    return _packaged("configs")


def packaged_data_dir():
    """Return the folder of the packaged sample data (pathlib.Path)."""
    return _packaged("data")


def config_paths():
    """Return {config name: path of its file (str)} of everything below `configs/`, as XTuner's own table has it."""
    return {
        path.stem: str(path)
        for path in sorted(configs_dir().rglob("*"))
        if path.suffix in (".py", ".json") and not path.name.startswith((".", "_"))
    }


def data_dir():
    """Return the folder of the training data (str): `WULEWULE_DATA_DIR`, else the packaged samples."""
    return os.path.abspath(os.path.expanduser(os.environ.get("WULEWULE_DATA_DIR") or str(packaged_data_dir())))


def model_or(default):
    """Return the model to start from (str, a folder or a hub id): `WULEWULE_MODEL`, else `default`.

    A relative or `~` path that exists is made absolute, because the adapter records it as its base.
    """
    model = os.environ.get("WULEWULE_MODEL") or default
    expanded = os.path.expanduser(model)
    return os.path.abspath(expanded) if os.path.isdir(expanded) else model


def cache_dir():
    """Return the folder for what the package makes itself (pathlib.Path): `$XDG_CACHE_HOME` or `~/.cache`, then `xtuner-wulewule`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xtuner-wulewule"


def expand(path):
    """Return a path that a user gave (pathlib.Path), absolute, `~` included."""
    return Path(os.path.abspath(os.path.expanduser(path)))


@contextmanager
def written_aside(file):
    """Let a file be written under another name, and move it into place when it is whole.

    Args:
        file (pathlib.Path): its place.

    Yields:
        pathlib.Path: the name to write to, beside the place and with its ending.
    """
    part = file.with_name(f".{file.stem}.{os.getpid()}{file.suffix}")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def made_aside(target, marker):
    """Make a folder that is complete or absent, so that several ranks and processes may start together.

    Args:
        target (pathlib.Path): its place. Where another process was faster, that one's folder is kept.
        marker (str): a file that the complete folder holds.

    Yields:
        pathlib.Path: an empty folder beside the target; at the end it becomes the target, or is removed after an error.

    Raises:
        OSError: the folder can't be written.
    """
    import shutil
    import tempfile

    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield building
        building.chmod(0o755)
        os.rename(building, target)
    except OSError:
        if not (target / marker).is_file():  # nobody else was faster: a real failure
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)

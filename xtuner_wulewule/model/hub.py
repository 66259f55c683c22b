"""Finds the model to start from: a folder, an id of the Hugging Face hub, or one of ModelScope."""

import os

from xtuner_wulewule.errors import ModelError

ANSWER = 15  # seconds for the hub to answer


def find_model(name, hub="huggingface", setting="WULEWULE_MODEL", other=""):
    """Return the folder (str) of a model, or its hub id where XTuner downloads it itself.

    Args:
        name (str): a folder, or an id.
        hub (str): "huggingface" or "modelscope", for an id.
        setting (str): what the user names the model with, an option or a variable, for the messages.
        other (str): what else can be done where the hub does not give it, the end of a sentence.

    Raises:
        ModelError: it is not there, or ModelScope's package is not installed.
    """
    expanded = os.path.abspath(os.path.expanduser(name))
    if os.path.isdir(expanded):
        if not os.path.isfile(os.path.join(expanded, "config.json")):
            raise ModelError(f"model folder {expanded} has no config.json: give the folder that holds the model, in {setting}")
        return expanded
    if looks_like_path(name):
        raise ModelError(
            f"model {name!r} not found: there is no such folder; set {setting} to a folder that holds the model, or to the id of one"
        )
    if hub == "modelscope":
        return _from_modelscope(name)
    return _from_huggingface(name, setting, other)


def download(name):
    """Return the folder (str) of a model that `find_model` found; an id is downloaded, or taken from the cache.

    Raises:
        ModelError: it cannot be downloaded.
    """
    if os.path.isdir(name):
        return name
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=["*.json", "*.py", "*.model", "*.txt", "*.safetensors", "*.bin"])
    except Exception as error:
        raise ModelError(
            f"model {name!r} cannot be downloaded ({type(error).__name__}: {error}); try again, it goes on where it stopped"
        ) from None


def looks_like_path(name):
    """Return whether a name can only be that of a folder (bool): hub ids are OWNER/NAME."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") != 1


def _from_huggingface(name, setting, other):
    """Return the id (str) of a model that is in the cache or on the hub, which is asked once: its client would try for half a minute."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            hf_raise_for_status(get_session().head(hf_hub_url(name, "config.json"), headers=build_hf_headers(), timeout=ANSWER))
    except Exception as error:  # the hub's client raises a dozen kinds: offline, no such model, gated, time-out
        reached = getattr(error, "response", None) is not None or constants.HF_HUB_OFFLINE
        mirror = "" if reached or not isinstance(error, OSError) else ", or HF_ENDPOINT to a mirror of the hub"
        raise ModelError(
            f"model {name!r} not found: there is no such folder and the hub does not give it ({type(error).__name__}); set "
            f"{setting} to a folder that holds the model, or to an id that can be downloaded{mirror}{other}"
        ) from None
    return name


def _from_modelscope(name):
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise ModelError("--hub modelscope needs its package: pip install modelscope") from None
    try:
        return snapshot_download(name)
    except Exception as error:
        raise ModelError(
            f"model {name!r} not found: ModelScope does not give it ({type(error).__name__}: {error}); check the id at modelscope.cn"
        ) from None

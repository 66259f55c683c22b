"""What the user sets of a config on the command line: keys that would change nothing, misspelt ones, and values that can't be meant."""

import difflib
import functools
from numbers import Real

from xtuner_wulewule.errors import WRONG_SEED, SettingsError
from xtuner_wulewule.prompts import VARIABLES

DATA = "train_dataloader.dataset"
ALIKE = 0.85  # ratio of difflib from which a key that is not there is taken for a misspelt one
# names of a config that are used while it is read -> the setting, or variable, that gets the value; None where there are several, or it is
# too late
READ_ONCE = {
    "AUTHOR": VARIABLES["author"],
    "NAMES": VARIABLES["name"],
    "SYSTEM": VARIABLES["system"],
    "accumulative_counts": "optim_wrapper.accumulative_counts",
    "batch_size": "train_dataloader.batch_size",
    "betas": "optim_wrapper.optimizer.betas",
    "data_dir": None,
    "data_files": f"{DATA}.data_files",
    "dtype": None,
    "evaluation_freq": None,
    "held_out": f"{DATA}.held_out",
    "lr": "optim_wrapper.optimizer.lr",
    "max_epochs": "train_cfg.max_epochs",
    "max_length": f"{DATA}.max_length",
    "max_norm": "optim_wrapper.clip_grad.max_norm",
    "pretrained_model_name_or_path": None,
    "prompt_template": None,
    "save_steps": "default_hooks.checkpoint.interval",
    "save_total_limit": "default_hooks.checkpoint.max_keep_ckpts",
    "system_dropout": f"{DATA}.system_dropout",
    "tokenizer": None,
    "train_dataset": DATA,
    "weight_decay": "optim_wrapper.optimizer.weight_decay",
}
# what is said of a number that can't be meant, and whether one can
OVER_0 = "it must be a number over 0", lambda value: value > 0  # a norm of inf lets gradients as they are, and logs theirs
FROM_0 = "it must be a number from 0 on", lambda value: 0 <= value < float("inf")
FROM_1 = "it must be a whole number from 1 on", lambda value: isinstance(value, int) and value >= 1
WHOLE = FROM_1[0], lambda value: 1 <= value < float("inf") and int(value) == value  # mmengine takes 1e3, too
SEED = WRONG_SEED, lambda value: isinstance(value, int) and 0 <= value < 2**32
NUMBERS = {
    READ_ONCE["accumulative_counts"]: FROM_1,
    READ_ONCE["batch_size"]: FROM_1,
    READ_ONCE["lr"]: FROM_0,
    READ_ONCE["max_epochs"]: OVER_0,  # XTuner takes half an epoch
    READ_ONCE["max_length"]: FROM_1,
    READ_ONCE["max_norm"]: OVER_0,
    READ_ONCE["weight_decay"]: FROM_0,
    "model.lora.r": FROM_1,
    "randomness.seed": SEED,
    "train_cfg.max_iters": WHOLE,
}
CHOSEN_BY_ITSELF = {"model.micro_batch_tokens"}  # a number, or "auto"
HOOKS = "custom_hooks"
ASKED = "evaluation_inputs"  # read later, too: hooks have a copy under the same name


def check_key(key, option, names):
    """Raise SettingsError where a key that the user sets is one of `READ_ONCE`, or below one.

    Args:
        key (str): as "lr" or "optim_wrapper.optimizer.lr".
        option (str): what was typed, for the message: "--set lr".
        names (Container[str]): the names in the config. One without the place that gets the value has another use for the name.
    """
    first, dot, rest = key.partition(".")
    if first not in READ_ONCE:
        return
    place = READ_ONCE[first]
    if place and place not in VARIABLES.values() and place.partition(".")[0] not in names:
        return
    further = f"set {place}{dot}{rest}" if place else "change it in a copy of the config: xtuner copy-cfg NAME ."
    raise SettingsError(f"{option}: {key} is used only while the config is read, so nothing would change; {further}")


def check_value(config, key, value, option):
    """Raise SettingsError where a key is a misspelt one, or where a number is replaced by something else.

    Args:
        config (mmengine.config.ConfigDict): what is set.
        key (str): as "optim_wrapper.optimizer.lr".
        value (object): what it is to be.
        option (str): what was typed, for the message.
    """
    path = key.split(".")
    for number, part in enumerate(path):
        if isinstance(config, (list, tuple)) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
            continue
        if not isinstance(config, dict):
            return
        if part not in config:
            meant = difflib.get_close_matches(part, list(config), 1, ALIKE)
            if meant:
                right = ".".join([*path[:number], meant[0], *path[number + 1 :]])
                raise SettingsError(f"{option}: there is no {part}; {right} is meant, perhaps")
            return
        config = config[part]
    by_itself = value == "auto" and key in CHOSEN_BY_ITSELF
    if isinstance(config, Real) and not isinstance(config, bool) and value is not None and not isinstance(value, Real) and not by_itself:
        raise SettingsError(f"{option}={value}: it is a number, such as {config}")


def check_number(key, value, option):
    """Raise SettingsError where a key of `NUMBERS` gets a value that it can't have; None stands for no value.

    Args:
        key (str): as "optim_wrapper.optimizer.lr".
        value (object): what it is to be.
        option (str): what was typed, for the message: "--set optim_wrapper.optimizer.lr=-1".
    """
    if key not in NUMBERS or value is None:
        return
    problem, can_be = NUMBERS[key]
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and can_be(value)):
        raise SettingsError(f"{option}: {problem}")


def with_copies(config, options):
    """Return the options (dict) with those that set the hooks' copies of `ASKED`; what the user sets of the hooks goes before.

    Args:
        config (mmengine.config.ConfigDict): what is set.
        options (dict): {key: value}.
    """
    if ASKED not in options or HOOKS in options:  # the latter replaces the hooks as a whole
        return options
    hooks = enumerate(config.get(HOOKS) or [])
    copies = {f"{HOOKS}.{number}.{ASKED}": options[ASKED] for number, hook in hooks if ASKED in hook and hook[ASKED] == config.get(ASKED)}
    return {**copies, **options}


def watch(config):
    """Let mmengine's `Config` check `--cfg-options` for a config of this package or a copy of one, and set the hooks' copies, too.

    Args:
        config (type): the class.
    """
    merge = config.merge_from_dict
    if getattr(merge, "of_wulewule", False):
        return

    @functools.wraps(merge)
    def checked(self, options, *args, **kwargs):
        if "xtuner_wulewule" in (self.text or ""):
            adapted = (self._cfg_dict.get("model") or {}).get("lora")
            for key, value in options.items():
                if adapted or key.partition(".")[0] != "tokenizer":  # which is read once more where a whole model is converted
                    check_key(key, f"--cfg-options {key}", self._cfg_dict)
                check_value(self._cfg_dict, key, value, f"--cfg-options {key}")
                check_number(key, value, f"--cfg-options {key}={value}")
            options = with_copies(self._cfg_dict, options)
        return merge(self, options, *args, **kwargs)

    checked.of_wulewule = True
    config.merge_from_dict = checked

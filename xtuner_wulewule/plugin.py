"""ONE table of everything the plugin puts into XTuner, and the functions that put it there.

The start-up module calls `after_import` when one of XTuner's modules has just run. Dicts are changed in place with `setdefault` and
registries are added to: nothing of XTuner's is replaced, except in `compat.py`, where each exception is stated.
"""

import sys
from contextlib import suppress
from importlib import import_module

from xtuner_wulewule import compat, errors, paths, prompts, settings

# name in the registry -> "module:object"
MAP_FUNCTIONS = {
    "wulewule_pretrain_map_fn": "xtuner_wulewule.dataset.map_fns:wulewule_pretrain_map_fn",
    "wulewule_sft_map_fn": "xtuner_wulewule.dataset.map_fns:wulewule_sft_map_fn",
}
DATASET_FORMATS = {
    "wulewule_pretrain": MAP_FUNCTIONS["wulewule_pretrain_map_fn"],
    "wulewule_sft": MAP_FUNCTIONS["wulewule_sft_map_fn"],
}
SYSTEM_TEMPLATES = {
    "wulewule": prompts.WULEWULE_SYSTEM,
    "wulewule_en": prompts.WULEWULE_SYSTEM_EN,
}
# mmengine's DATASETS and XTuner's BUILDER
DATASET_BUILDERS = {"build_wulewule_dataset": "xtuner_wulewule.dataset.build:build_wulewule_dataset"}
# registry of mmengine -> {name: "module:object"}; these modules import mmengine and torch, never xtuner, at module level
MMENGINE_REGISTRIES = {
    "DATASETS": DATASET_BUILDERS,
    "FUNCTIONS": {"wulewule_collate_fn": "xtuner_wulewule.dataset.build:wulewule_collate_fn"},
    "DATA_SAMPLERS": {"NoShuffleSampler": "xtuner_wulewule.dataset.samplers:NoShuffleSampler"},
    "HOOKS": {
        "AccumulativeCountsHook": "xtuner_wulewule.engine.hooks:AccumulativeCountsHook",
        "RandomStateHook": "xtuner_wulewule.engine.random_state:RandomStateHook",
        "UpdateBudgetHook": "xtuner_wulewule.engine.hooks:UpdateBudgetHook",
    },
    "OPTIM_WRAPPERS": {"FusedAmpOptimWrapper": "xtuner_wulewule.engine.optim_wrapper:FusedAmpOptimWrapper"},
    "PARAM_SCHEDULERS": {"WarmupCosineLR": "xtuner_wulewule.engine.schedulers:WarmupCosineLR"},
}
# these subclass XTuner's own classes, so they can only be imported when the module named here has run
AFTER_XTUNER_MODEL = {"WulewuleFinetune": "xtuner_wulewule.model.finetune:WulewuleFinetune"}  # MODELS and XTuner's BUILDER
AFTER_XTUNER_ENGINE = {  # HOOKS
    "BatchedEvaluateChatHook": "xtuner_wulewule.engine.evaluate_chat_hook:BatchedEvaluateChatHook",
    "ScoreHook": "xtuner_wulewule.engine.score_hook:ScoreHook",
}
SUBCLASSES = {"xtuner.model": AFTER_XTUNER_MODEL, "xtuner.engine": AFTER_XTUNER_ENGINE}
_deferred: set[str] = set()  # modules of XTuner's that one of these subclasses' modules is importing


def _load(target):
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _register(registry, table):
    for name, target in table.items():
        if name not in registry:
            registry.register_module(name=name, module=_load(target))


def add_configs(module):
    """Add the packaged configs to `xtuner.configs.cfgs_name_path`."""
    errors.install_excepthook()  # `copy-cfg` imports nothing else of XTuner's
    for name, path in paths.config_paths().items():
        module.cfgs_name_path.setdefault(name, path)


def add_dataset_formats(module):
    """Add the map functions to XTuner's DATASET_FORMAT_MAPPING."""
    for name, target in DATASET_FORMATS.items():
        module.DATASET_FORMAT_MAPPING.setdefault(name, _load(target))


def add_system_templates(module):
    """Add the system prompts to XTuner's SYSTEM_TEMPLATE, and let the chat, which has imported it, end with its input.

    "wulewule" is that of the persona in the environment, where there is one.
    """
    texts = dict(SYSTEM_TEMPLATES)
    with suppress(errors.SettingsError):  # an empty name is told where the config is read
        texts["wulewule"] = prompts.current().system.replace("{", "{{").replace("}", "}}")  # XTuner's chat formats it
    for name, text in texts.items():
        module.SYSTEM_TEMPLATE.setdefault(name, text)
    compat.end_chat_with_input()


def add_to_registries(module):
    """Register what needs nothing of XTuner: map functions, sampler, hooks, schedule."""
    errors.install_excepthook()
    _register(module.MAP_FUNC, MAP_FUNCTIONS)
    mmengine = import_module("mmengine.registry")
    for registry, table in MMENGINE_REGISTRIES.items():
        _register(getattr(mmengine, registry), table)
    _register(module.BUILDER, DATASET_BUILDERS)
    settings.watch(import_module("mmengine.config").Config)
    compat.allow_mmengine_checkpoints()
    compat.set_up_cpu_processes()
    compat.end_with_launcher()


def add_models(module):
    """Register the model class, in mmengine's MODELS and in XTuner's BUILDER, which `pth_to_hf` builds from."""
    _register(import_module("mmengine.registry").MODELS, AFTER_XTUNER_MODEL)
    _register(import_module("xtuner.registry").BUILDER, AFTER_XTUNER_MODEL)


def add_engine(module):
    """Register the hook that extends one of XTuner's, and mend DeepSpeed and mmengine's runner, which `xtuner.engine` has imported."""
    _register(import_module("mmengine.registry").HOOKS, AFTER_XTUNER_ENGINE)
    compat.single_process_deepspeed()
    compat.no_sleep_between_epochs()
    compat.tell_of_compile_lock()


# module of XTuner -> what happens when it has run. The start-up module holds the same names: tests compare them.
ACTIONS = {
    "xtuner.configs": add_configs,
    "xtuner.dataset.map_fns.dataset_map_fns": add_dataset_formats,
    "xtuner.engine": add_engine,
    "xtuner.entry_point": compat.honest_entry_point,
    "xtuner.model": add_models,
    "xtuner.registry": add_to_registries,
    "xtuner.utils.device": compat.cpu_bf16_query,
    "xtuner.utils.templates": add_system_templates,
}


def after_import(module):
    """Extend a module of XTuner that has just been imported.

    Args:
        module (types.ModuleType): the module; one whose name is not in `ACTIONS` is left alone.
    """
    action = ACTIONS.get(module.__name__)
    if _one_is_being_imported(module.__name__):
        _deferred.add(module.__name__)  # it is one of ours that imported XTuner's module; it calls `go_on` at its end
    elif action is not None:
        action(module)


def _one_is_being_imported(name):
    """Return whether a module of ours that subclasses from the module `name` (str) has begun, and has not got to its class yet (bool)."""
    for target in SUBCLASSES.get(name, {}).values():
        place, _, subclass = target.partition(":")
        module = sys.modules.get(place)
        if module is not None and getattr(module.__spec__, "_initializing", False) and not hasattr(module, subclass):
            return True
    return False


def go_on(name):
    """Do what `after_import` put off for a module of XTuner's.

    Args:
        name (str): the module.
    """
    if name in _deferred and not _one_is_being_imported(name):
        _deferred.remove(name)
        ACTIONS[name](sys.modules[name])


def explain_import_error(module, error):
    """Return an error that names the fix, or None where the ImportError of a target says enough."""
    if module.__name__ == "bitsandbytes":
        return compat.explain_bitsandbytes(error)
    return None

"""Start-up module of xtuner-wulewule, imported by `xtuner_wulewule_autoload.pth` when Python starts.

It puts one finder at the head of `sys.meta_path`. The finder answers only for the modules in `TARGETS`; whatever else is imported
costs one set look-up. When XTuner imports a target, the real module runs first and `xtuner_wulewule.plugin` is told afterwards; the
package itself is never imported before that. `XTUNER_WULEWULE_AUTOLOAD=0` turns all of it off.

Only `sys` is imported here, because every Python process of the environment pays for this file. It is a package, although it is one
file, because uv leaves the bytecode of single modules behind when it uninstalls.
"""

import sys

TARGETS = frozenset(
    (
        "bitsandbytes",
        "xtuner.configs",
        "xtuner.dataset.map_fns.dataset_map_fns",
        "xtuner.engine",
        "xtuner.entry_point",
        "xtuner.model",
        "xtuner.registry",
        "xtuner.utils.device",
        "xtuner.utils.templates",
    )
)


def _tell_plugin(function, *args):
    """Call `xtuner_wulewule.plugin.<function>(*args)`; a failure of ours is reported and never raised into XTuner."""
    try:
        from xtuner_wulewule import plugin

        return getattr(plugin, function)(*args)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit included: a broken plugin must not end the host's process
        if sys.stderr is not None:  # None where the process was started with it closed
            sys.stderr.write(
                f"xtuner-wulewule: warning: {args[0].__name__} could not be extended "
                f"({type(error).__name__}: {' '.join(str(error).split())}); "
                "reinstall xtuner-wulewule, or set XTUNER_WULEWULE_AUTOLOAD=0 to use XTuner without it\n"
            )


class ExecModule:
    """Stands in for `loader.exec_module` of one target. A class at module level, so that loader and spec still pickle.

    Args:
        loader: the loader that Python would have used; its own `exec_module` still runs the module.
    """

    def __init__(self, loader):
        self.loader = loader

    def __call__(self, module):
        try:
            type(self.loader).exec_module(self.loader, module)
        except ImportError as error:
            explained = _tell_plugin("explain_import_error", module, error)
            if explained is not None:
                raise explained from error
            raise
        _tell_plugin("after_import", module)


class Finder:
    """Meta path finder that finds the targets through the finders behind it and adds `ExecModule` to their loaders."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in TARGETS:
            return None
        for finder in sys.meta_path[sys.meta_path.index(cls) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                if hasattr(type(spec.loader), "exec_module"):
                    spec.loader.exec_module = ExecModule(spec.loader)
                return spec
        return None


sys.meta_path.insert(0, Finder)

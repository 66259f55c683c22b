"""Build hook: places the start-up files at the top of site-packages, and `configs/` and `data/` inside the package.

An editable install gets the start-up files too (`force_include_editable`); it finds configs and data in the checkout.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StartupFilesHook(BuildHookInterface):
    def initialize(self, version, build_data):
        root = Path(self.root)
        files = [path for path in sorted((root / "startup").rglob("*")) if path.suffix in (".pth", ".py")]
        startup = {str(path): str(path.relative_to(root / "startup")) for path in files}
        build_data["force_include_editable"].update(startup)
        build_data["force_include"].update(startup)
        for folder in ("configs", "data"):
            build_data["force_include"][str(root / folder)] = f"xtuner_wulewule/{folder}"

"""The persona: this is the one place where its names, its author and its system prompts stand. Training, evaluation and chat take them
from here. `WULEWULE_NAME`, `WULEWULE_AUTHOR` and `WULEWULE_SYSTEM` put another one in its place, for XTuner's own commands too."""

import functools
import os
import re
from dataclasses import dataclass

from xtuner_wulewule.errors import SettingsError

NAMES = ("悟了悟了", "Wulewule")  # first the one in Chinese questions, last the one in others
AUTHOR = "xzyun2011"

# The sentence of the training guide, without the trailing newline that the published recipe added only in evaluation.
WULEWULE_SYSTEM = (
    "你是悟了悟了，由xzyun2011开发的AI助手，专注于回答和《黑神话：悟空》这款游戏相关的问题，"
    "你想帮助玩家了解更多这款游戏背后的故事和文化知识。"
)
WULEWULE_SYSTEM_EN = (
    "You are Wulewule (悟了悟了), an AI assistant developed by xzyun2011. You answer questions about the game "
    "Black Myth: Wukong and help players understand the stories and the culture behind it."
)
COMMA = "[,，、]"  # between names
VARIABLES = {"name": "WULEWULE_NAME", "author": "WULEWULE_AUTHOR", "system": "WULEWULE_SYSTEM"}  # option of ours -> of the environment


@dataclass(frozen=True)
class Persona:
    """Who the assistant is said to be; by default the one of the package.

    Args:
        names (tuple[str, ...]): its names; the first stands in Chinese questions about it, the last in others.
        author (str): who made it.
        system (str): the system prompt; none where it is empty.
    """

    names: tuple[str, ...] = NAMES
    author: str = AUTHOR
    system: str = WULEWULE_SYSTEM

    def values(self):
        """Return what says it (dict[str, str]), by the names of the options; nothing where it is that of the package, and nothing in the
        environment says otherwise."""
        if self == Persona() and not any(variable in os.environ for variable in VARIABLES.values()):
            return {}
        return self._all()

    def _all(self):
        return {"name": ",".join(self.names), "author": self.author, "system": self.system}

    def arguments(self):
        """Return the arguments (list[str]) of `wulewule` that say it, be it that of the package."""
        return [f"--{key}={value}" for key, value in self._all().items()]

    def variables(self):
        """Return the environment variables (dict[str, str]) that say it; see `values`."""
        return {VARIABLES[key]: value for key, value in self.values().items()}


def given(**options):
    """Return what is said of the persona (dict[str, str]): by options, else by the environment.

    Args:
        options (str | None): `name`, `author` and `system`; None where an option was not given.

    Raises:
        SettingsError: a name or an author is empty.
    """
    values = {}
    for key, variable in VARIABLES.items():
        value, where = options.get(key), f"--{key}"
        if value is None:
            value, where = os.environ.get(variable), variable
        if value is None:
            continue
        if key != "system" and not names_of(value):
            raise SettingsError(f"{where} is empty; give {'a name' if key == 'name' else 'who made it'}, or leave it out")
        values[key] = value.strip()
    return values


def names_of(text):
    """Return the names (tuple[str, ...]) in a text, with commas of any keyboard between."""
    return tuple(name.strip() for name in re.split(COMMA, text) if name.strip())


def persona_of(values, base=None):
    """Return the `Persona` that values say.

    Args:
        values (dict[str, str]): of `given`; `name` may hold several, with commas between.
        base (Persona, optional): has what they do not say; its system prompt serves the same name and author only, others get that of
            the package with them in it. Defaults to the persona of the package.
    """
    base = base or Persona()
    names = names_of(values["name"]) if "name" in values else base.names
    author = values.get("author", base.author)
    same = (names[0], author) == (base.names[0], base.author)
    return Persona(names, author, values.get("system", base.system if same else system_prompt(names[0], author)))


def persona_of_config(config):
    """Return the `Persona` that a config trains, that of the package where it names none.

    Args:
        config (mmengine.config.Config | dict | None): any of XTuner's.

    Returns:
        Persona | None: None without a config.
    """
    if config is None:
        return None
    system = config.get("SYSTEM")
    told = (told_by(system) if system else None) or Persona()
    names, author = config.get("NAMES"), config.get("AUTHOR") or told.author
    names = (names,) if isinstance(names, str) else names
    names = tuple(names) if isinstance(names, (list, tuple)) and names else told.names
    return Persona(names, author, system_prompt(names[0], author) if system is None else system)


def current():
    """Return the `Persona` that the environment says, by default that of the package; raise SettingsError where a name is empty."""
    return _current(*map(os.environ.get, VARIABLES.values()))


@functools.lru_cache(1)  # asked for each row
def _current(*_):
    return persona_of(given())


def system_prompt(name, author):
    """Return the system prompt of the package (str) with this name and author in it."""
    return WULEWULE_SYSTEM.replace(NAMES[0], name, 1).replace(AUTHOR, author, 1)


def same_prompt(one, other):
    """Return whether two system prompts (str) are the same one, be it in two languages (bool)."""
    return one == other or {one, other} == {WULEWULE_SYSTEM, WULEWULE_SYSTEM_EN}


_OF_NAME_AND_AUTHOR = re.compile(re.escape(WULEWULE_SYSTEM).replace(NAMES[0], "(.+?)", 1).replace(AUTHOR, "(.+?)", 1))


def told_by(system):
    """Return the `Persona` whose name and author a system prompt (str) tells as `system_prompt` writes it, None where it is another one."""
    if system in (WULEWULE_SYSTEM, WULEWULE_SYSTEM_EN):
        return Persona(system=system)
    match = _OF_NAME_AND_AUTHOR.fullmatch(system)
    return persona_of({"name": match[1], "author": match[2], "system": system}) if match else None

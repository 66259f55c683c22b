"""Thresholds that a model must pass before it is handed out.

Run as `python -m xtuner_wulewule.evaluation.gate SCORECARD RULES` in a step of `wulewule run`.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from xtuner_wulewule.errors import GateError, SettingsError, WulewuleError, one_line, wants_traceback
from xtuner_wulewule.evaluation.scorecard import METRICS, shown

# the persona is there with and without its prompt, and under a twentieth is lost
DEFAULT = (
    "name>=0.95",
    "name_without_system>=0.95",
    "leak<=0.05",
    "leak_without_system<=0.05",
    "bleed_without_system<=0.05",
    "perplexity_growth<=0.05",
)
_RULE = re.compile(r"\s*([a-z_0-9]+)\s*(>=|<=)\s*(-?[0-9.]+(?:e-?[0-9]+)?)\s*")


@dataclass(frozen=True)
class Rule:
    """One threshold.

    Args:
        metric (str): of `METRICS`.
        sign (str): ">=" or "<=".
        limit (float): the threshold.
    """

    metric: str
    sign: str
    limit: float

    def __str__(self):
        return f"{self.metric}{self.sign}{self.limit:g}"

    def passes(self, value):
        """Return whether a value is on the right side (bool)."""
        return value >= self.limit if self.sign == ">=" else value <= self.limit


def parse(rules):
    """Return the rules (list[Rule]) of "name>=0.95,leak<=0.05", or of a list of such.

    Raises:
        SettingsError: one is not a rule, or names no metric.
    """
    found = []
    for text in rules.split(",") if isinstance(rules, str) else rules:
        match = _RULE.fullmatch(text)
        try:
            found.append(Rule(match[1], match[2], float(match[3])))
        except (TypeError, ValueError):
            raise SettingsError(f"--gate {text}: expected METRIC>=NUMBER or METRIC<=NUMBER, for example name>=0.95") from None
        if found[-1].metric not in METRICS:
            raise SettingsError(f"--gate {text}: there is no metric {found[-1].metric}; they are {', '.join(METRICS)}")
    return found


def check_possible(rules, suites, base, system):
    """Raise SettingsError where a rule needs a suite that is not run (tuple[str, ...]), a base that was not given (str | None), or a system
    prompt (str) where that is empty."""
    for rule in rules:
        metric = METRICS[rule.metric]
        if metric.suite not in suites:
            raise SettingsError(f"--gate {rule}: needs the suite {metric.suite}; add it to --suite")
        if metric.compares and not base:
            raise SettingsError(f"--gate {rule}: compares with the model before the training; name it with --base")
        if not system and f"{rule.metric}_without_system" in METRICS:
            raise SettingsError(f"--gate {rule}: asks with a system prompt, and there is none; ask for {rule.metric}_without_system")


def marks(rules, metrics):
    """Return {metric: what the table shows of its rule}."""
    return {
        rule.metric: f"{rule.sign}{shown(rule.metric, rule.limit)} {'passed' if _passes(rule, metrics) else 'MISSED'}" for rule in rules
    }


def _passes(rule, metrics):
    return rule.metric in metrics and rule.passes(metrics[rule.metric]["value"])


def check(rules, metrics):
    """Check the metrics of a scorecard (dict).

    Raises:
        GateError: rules were missed; each is named.
    """
    missed = []
    for rule in rules:
        if rule.metric not in metrics:
            missed.append(f"{rule} (not measured: no such questions were held out)")
        elif not _passes(rule, metrics):
            missed.append(f"{rule} (it is {shown(rule.metric, metrics[rule.metric]['value'])})")
    if missed:
        raise GateError(f"the model misses {len(missed)} of {len(rules)} thresholds: {'; '.join(missed)}")


def main(argv=None):
    """Check a scorecard; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m xtuner_wulewule.evaluation.gate", description=__doc__.partition("\n")[0])
    parser.add_argument("scorecard", type=Path, help="scorecard.json of wulewule eval")
    parser.add_argument("rules", help="for example name>=0.95,leak<=0.05")
    args = parser.parse_args(argv)
    try:
        rules = parse(args.rules)
        check(rules, json.loads(args.scorecard.read_text(encoding="utf-8"))["metrics"])
    except WulewuleError as error:
        if wants_traceback():
            raise
        print(one_line(error), file=sys.stderr)
        return 1
    print(f"all {len(rules)} thresholds passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Configs: Hydra composes `paper=<slug>/<profile>` and overrides over the typed Config of the paper.

What comes out is a `Composed`: the frozen Config that run() takes, the seeds, and the same as plain values. Every
mistake is one line: an unknown key names the valid ones, a wrong type names the field.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from antlr4 import InputStream, Token
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.typed import MISSING, build, defaults, plain, unknown_key

TOP_LEVEL = ("seeds", "paper")
MOST_SEEDS = 1000
OPENING = (OverrideLexer.POPEN, OverrideLexer.BRACKET_OPEN, OverrideLexer.BRACE_OPEN)  # tokens within a value
CLOSING = (OverrideLexer.PCLOSE, OverrideLexer.BRACKET_CLOSE, OverrideLexer.BRACE_CLOSE)
HYDRA_VERSION = "1.3"  # whose behaviour the configs are written for


@dataclass(frozen=True)
class Composed:
    """A paper's config under one profile, ready to run."""

    slug: str
    profile: str
    config: Any  # the paper's Config
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    tree: Mapping[str, Any] = field(default_factory=dict)  # config as plain values
    check: Callable[[Any], None] = lambda config: (
        None
    )  # the paper's check of fields that depend on each other

    @property
    def device(self) -> str:
        return "cuda" if self.profile == "cuda" else "cpu"

    def with_settings(self, settings: Mapping[str, Any], where: str) -> "Composed":
        """The same with fields of the Config set (dotted names where nested), as a control does."""
        tree = copy.deepcopy(dict(self.tree))
        for key, value in settings.items():
            *outer, last = key.split(".")
            inside = tree
            for i, step in enumerate([*outer, last]):
                if not isinstance(inside, dict) or step not in inside:
                    raise unknown_key(
                        f"{where}.{key}", step, inside if isinstance(inside, dict) else self.tree
                    )
                if i < len(outer):
                    inside = inside[step]
            inside[last] = value
        config = build(type(self.config), tree, where)
        checked(self.check, config, where)
        return replace(self, config=config, tree=plain(config))

    def with_seeds(self, seeds: Sequence[int]) -> "Composed":
        """The same on other seeds."""
        return replace(self, seeds=tuple(seeds))

    def as_json(self) -> dict[str, Any]:
        """What `python -m common.lab.bare` reads."""
        return {
            "paper": self.slug,
            "profile": self.profile,
            "overrides": list(self.overrides),
            "seeds": list(self.seeds),
            "config": dict(self.tree),
        }


def compose(project: Project, slug: str, profile: str, overrides: Sequence[str] = ()) -> Composed:
    """Compose a paper's config. LabError in one line where anything is unknown or has the wrong type."""
    project.check_slug(slug)
    project.check_profile(slug, profile)
    schema = register_schema(project, slug)
    check_overrides(overrides, schema)
    place = f"conf/paper/{slug}/{profile}.yaml"
    try:
        with initialize_config_dir(str(project.root / "conf"), job_name=slug, version_base=HYDRA_VERSION):
            composed = hydra_compose("config", [f"paper={slug}/{profile}", *overrides])
        tree = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise LabError(f"{place}: {error}") from error
    except Exception as error:  # YAML errors reach here as they are
        if type(error).__module__.startswith("yaml"):
            raise LabError(f"{place}: not valid YAML: {error}") from error
        raise
    assert isinstance(tree, dict)
    return from_tree(project, slug, profile, {str(key): value for key, value in tree.items()}, overrides)


def from_tree(
    project: Project, slug: str, profile: str, tree: Mapping[str, Any], overrides: Sequence[str] = ()
) -> Composed:
    """A composed tree (seeds, paper) as a Composed, such as a Hydra application is handed."""
    for key in tree:
        if key not in TOP_LEVEL:
            raise unknown_key(f"conf/paper/{slug}/{profile}.yaml: {key}", key, TOP_LEVEL)
    seeds = tree["seeds"]
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise LabError(f"seeds: {seeds!r} is no number of seeds; it is a whole number from 1")
    if seeds > MOST_SEEDS:
        raise LabError(f"seeds: {seeds} are too many; it is a whole number from 1 to {MOST_SEEDS}")
    experiment = project.experiment(slug)
    try:
        config = build(experiment.config, tree["paper"])
        checked(experiment.check, config, "paper")
    except LabError as error:
        named = str(error).partition(":")[0]
        overridden = any(named.startswith(text.lstrip("+~").partition("=")[0]) for text in overrides)
        overridden = overridden or (named == "paper" and bool(overrides))  # what check() says of the whole
        raise LabError(f"{'SET' if overridden else f'conf/paper/{slug}/{profile}.yaml'}: {error}") from error
    seen = tuple(range(seeds))
    return Composed(slug, profile, config, seen, tuple(overrides), plain(config), experiment.check)


def checked(check: Callable[[Any], None], config: Any, where: str) -> None:
    """LabError in one line where a paper's check refuses a config."""
    try:
        check(config)
    except (ValueError, KeyError) as error:
        raise LabError(f"{where}: {error.args[0] if error.args else error}") from error


def register_schema(project: Project, slug: str) -> dict[str, Any]:
    """Give Hydra the fields and defaults of the paper's Config as the config `schema`; also returned."""
    schema = {"seeds": 5, "paper": defaults(project.experiment(slug).config)}
    ConfigStore.instance().store(name="schema", node=schema)
    return schema


def check_overrides(overrides: Sequence[str], schema: Mapping[str, Any], sweep: bool = False) -> None:
    """Refuse overrides that can't be read, and keys that the schema does not have, naming the valid ones."""
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise LabError(f"SET: {text!r} is no override such as paper.requests=500: {error}") from error
        if override.is_sweep_override() and not sweep:
            raise LabError(
                f"SET: {text!r} lists several values: that is for make sweep (a list is written [1,2])"
            )
        key = override.key_or_group
        if key.startswith("hydra.") or key == "launcher":
            continue
        if key == "paper":
            raise LabError(f"SET: {text!r}: paper and profile are chosen by PAPER= and PROFILE=")
        inside: Any = schema
        walked: list[str] = []
        for step in key.split("."):
            if not isinstance(inside, Mapping):
                break  # inside a value without known keys; typed.build judges it
            if step not in inside and not (override.is_add() and walked[:1] == ["paper"]):
                valid = [".".join([*walked, name]) for name in inside]
                raise unknown_key(f"SET: {key}", ".".join([*walked, step]), valid)
            inside = inside.get(step, MISSING)
            walked.append(step)


def split_overrides(text: str) -> list[str]:
    """SET="a=1 b=[1, 2] c='x y'" as single overrides: split at blanks outside Hydra's brackets, quotes and escapes."""
    parts = []
    rest = text.lstrip()
    while rest:
        key = re.match(r"[^\s=]*=?", rest)
        assert key is not None  # it matches anything
        end = key.end() + _value_end(rest[key.end() :]) if key[0].endswith("=") else key.end()
        parts.append(rest[:end])
        rest = rest[end:].lstrip()
    return parts


def _value_end(text: str) -> int:
    """Where the value at the start of a text ends, as Hydra's own lexer reads it."""
    lexer = OverrideLexer(InputStream(text))
    lexer.removeErrorListeners()  # what it cannot read is told by check_overrides
    lexer.mode(OverrideLexer.VALUE_MODE)
    end = depth = 0
    while True:
        token = lexer.nextToken()
        start = len(text) if token.type == Token.EOF else token.start
        blank = re.search(r"\s", text[end:start])  # in what the lexer passed over, such as the end of a line
        if depth <= 0 and blank:
            return end + blank.start()
        if token.type == Token.EOF or (depth <= 0 and token.type == OverrideLexer.WS):
            return start
        depth += (token.type in OPENING) - (token.type in CLOSING)
        end = token.stop + 1


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values as ("a.b", value) pairs; lists stay whole."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

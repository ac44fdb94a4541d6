"""Configs: Hydra composes, types are held, and every mistake is one line that names what would be right."""

import dataclasses
import re
from typing import Literal

import pytest

from common.lab.arms import arms_of
from common.lab.card import Card
from common.lab.config import compose, flatten, split_overrides
from common.lab.errors import LabError
from common.lab.project import Project
from common.lab.typed import build, defaults, plain


def test_profile_and_overrides_are_composed_over_the_defaults(toy: Project) -> None:
    composed = compose(toy, "toy", "smoke", ["paper.noise.scale=1", "paper.rates=[4,5]", "seeds=3"])
    assert composed.config == type(composed.config)(
        requests=60, rates=[4.0, 5.0], noise=type(composed.config.noise)(scale=1.0)
    )
    assert composed.seeds == (0, 1, 2)
    assert compose(toy, "toy", "default").seeds == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("slug", "profile", "message"),
    [
        ("tyo", "smoke", "unknown paper 'tyo'. Did you mean toy?"),
        ("zebra", "smoke", "unknown paper 'zebra'. There is: toy."),
        ("", "smoke", "no paper is named: PAPER=<slug>, one of toy"),
        ("toy", "small", "toy has no profile 'small'; it has: smoke, default, cuda"),
    ],
)
def test_unknown_papers_and_profiles_name_the_known_ones(
    toy: Project, slug: str, profile: str, message: str
) -> None:
    with pytest.raises(LabError, match=re.escape(message)):
        compose(toy, slug, profile)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "paper.requets=1",
            "SET: paper.requets: unknown key. Did you mean paper.requests.*Valid: paper.requests, paper.rates",
        ),
        ("paper.noise.scal=1", "Valid: paper.noise.scale"),
        ("+paper.extra=1", "paper.extra: unknown key"),
        ("sedds=3", "Did you mean seeds"),
        ("paper.requests=many", "SET: paper.requests: 'many' is no whole number"),
        ("paper.requests=1.5", "1.5 is no whole number"),
        ("paper.mechanism=1", "1 is no boolean"),
        ("paper.noise.scale=[1]", "no number"),
        ("paper.rates=[1,x]", r"paper.rates\[1\]: 'x' is no number"),
        ("paper.noise=3", "no mapping with the keys of Noise"),
        ("paper.requests=0", "SET: paper.requests: 0 is out of range; it is a number from 1 to 1,000,000"),
        ("paper.rates=[]", "SET: paper.rates: has 0 items; it takes 1 to 64"),
        ("paper.rates=[2,2]", "SET: paper.rates: names an item twice"),
        ("paper.noise.scale=nan", "SET: paper.noise.scale: nan is no finite number"),
        ("seeds=1001", "seeds: 1001 are too many"),
        ("paper.requests=1,2", "several values: that is for make sweep"),
        ("paper=toy/full", "chosen by PAPER= and PROFILE="),
        ("seeds=0", "whole number from 1"),
        ("seeds=true", "whole number from 1"),
        ("nonsense", "no override such as"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_valid_ones(toy: Project, override: str, message: str) -> None:
    if override.startswith("~"):
        assert (
            compose(toy, "toy", "smoke", [override]).config.requests == 100
        )  # back to the Config's own default
        return
    with pytest.raises(LabError, match=message) as caught:
        compose(toy, "toy", "smoke", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paper: {requets: 1}", "conf/paper/toy/smoke.yaml: paper.requets: unknown key"),
        ("paper: {requests: many}", "conf/paper/toy/smoke.yaml: paper.requests: 'many'"),
        ("sedes: 3", "conf/paper/toy/smoke.yaml: sedes: unknown key"),
        ("paper: [1", "conf/paper/toy/smoke.yaml: not valid YAML"),
    ],
)
def test_a_wrong_profile_names_its_file(toy: Project, text: str, message: str) -> None:
    (toy.root / "conf" / "paper" / "toy" / "smoke.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(LabError, match=message):
        compose(toy, "toy", "smoke")


def test_a_removed_key_falls_back_to_the_configs_own_default(toy: Project) -> None:
    assert compose(toy, "toy", "smoke", ["~paper.requests"]).config.requests == 100


def test_what_one_field_allows_and_another_forbids_is_one_line(toy: Project) -> None:
    with pytest.raises(LabError, match="SET: paper: shuffled: there is nothing to shuffle"):
        compose(toy, "toy", "smoke", ["paper.shuffled=true", "paper.mechanism=false"])


def test_a_control_changes_only_what_it_sets(toy: Project) -> None:
    composed = compose(toy, "toy", "smoke", ["paper.requests=7"])
    (arm,) = (arm for arm in arms_of(Card.load(toy.card("toy"))) if arm.name == "without")
    switched = arm.composed(composed)
    assert switched.config == dataclasses.replace(composed.config, mechanism=False)
    assert composed.config.mechanism is True


def test_a_controls_unknown_field_names_the_card_and_the_valid_ones(toy: Project) -> None:
    card = toy.card("toy")
    card.write_text(card.read_text().replace("set: {mechanism: false}", "set: {mecanism: false}"))
    with pytest.raises(
        LabError, match=r"paper.yaml: controls.without.set.mecanism: unknown key. Did you mean mechanism"
    ):
        arms_of(Card.load(card))[0].composed(compose(toy, "toy", "smoke"))


def test_overrides_are_split_outside_brackets_and_quotes() -> None:
    assert split_overrides(" a=1  b=[1, 2] c='x y' d={a: 1} ") == ["a=1", "b=[1, 2]", "c='x y'", "d={a: 1}"]
    assert split_overrides("") == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (r"paper.label='it\'s b' seeds=3", [r"paper.label='it\'s b'", "seeds=3"]),
        (r'a="say \"a b\"" b=1', [r'a="say \"a b\""', "b=1"]),
        (r"a='ends in \\' b=1", [r"a='ends in \\'", "b=1"]),
        (r"a=x\ y b=\[ c=1", [r"a=x\ y", r"b=\[", "c=1"]),
        ("seeds=1, 2 a=sort(3, 2)", ["seeds=1, 2", "a=sort(3, 2)"]),
        ("seeds=${paper.requests} a={b: ']'} c=1", ["seeds=${paper.requests}", "a={b: ']'}", "c=1"]),
        ("a=[1,\n2]\nb='x\ny' ~c +d=1", ["a=[1,\n2]", "b='x\ny'", "~c", "+d=1"]),
        ("a= b=1 nonsense c=2", ["a=", "b=1", "nonsense", "c=2"]),
        ("a='never closed b=;x c=2", ["a='never", "closed", "b=;x", "c=2"]),
    ],
)
def test_overrides_are_split_as_hydra_reads_them(text: str, parts: list[str]) -> None:
    assert split_overrides(text) == parts


def test_flattened_configs_have_dotted_names() -> None:
    assert dict(flatten({"a": {"b": 1, "c": [2]}, "d": 3})) == {"a.b": 1, "a.c": [2], "d": 3}


# --- typed values -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inner:
    x: float


@dataclasses.dataclass(frozen=True)
class Outer:
    must: int
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, str] = (1, "x")
    many: tuple[float, ...] = ()
    maybe: Inner | None = None
    table: dict[str, float] = dataclasses.field(default_factory=dict)
    listed: list[Inner] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.must < 0:
            raise ValueError("must must not be negative")


def test_every_kind_of_field_comes_back_as_it_was() -> None:
    value = Outer(3, "b", (2, "y"), (1.0, 2.0), Inner(0.5), {"k": 1.0}, [Inner(1.0)])
    assert build(Outer, plain(value)) == value
    assert defaults(Outer)["must"] == "???"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "paper.must: has no default and must be given"),
        ({"must": 1, "kind": "c"}, "paper.kind: 'c' is none of a, b"),
        ({"must": 1, "pair": [1]}, "paper.pair: 2 values are needed, not 1"),
        ({"must": 1, "pair": [1, 2]}, r"paper.pair\[1\]: 2 is no string"),
        ({"must": 1, "maybe": {"y": 1}}, "paper.maybe.*unknown key"),
        ({"must": 1, "table": {"k": "v"}}, "paper.table.k: 'v' is no number"),
        ({"must": 1, "listed": {"x": 1}}, "paper.listed: .*no list"),
        ({"must": True}, "paper.must: True is no whole number"),
        ({"must": -1}, "paper: must must not be negative"),
        ([], "no mapping"),
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name(content: object, message: str) -> None:
    with pytest.raises(LabError, match=message):
        build(Outer, content)

"""Rankings, folds and healing of SmolLM2-135M: which models are made, and what the claims read of them.

Stage one scores the blocks and trains the gates of every seed; stage two makes every model that follows from them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.lab.runtime import Observations, Runtime
from common.models.smollm2 import CONFIG
from papers.foldgpt.baselines import ranked
from papers.foldgpt.config import Config
from papers.foldgpt.gates import CLOSED, Pressure, Trained
from papers.foldgpt.grouping import folded, scattered
from papers.foldgpt.healing import Recipe
from papers.foldgpt.tasks import (
    Arm,
    LearnGates,
    Look,
    Outcome,
    Scores,
    Task,
    Text,
    Trial,
    Untrained,
    outcomes,
    pretrained,
)  # fmt: skip
from papers.foldgpt.virtual_blocks import Fold, size_of, unfolded, without

METRICS = ("gates_gain", "both_gain", "heal_gain", "tail_gain", "retained")
KINDS = ("removal", "sharing", "both")
RANDOM_DRAWS = 2  # random removals of a seed
HARMFUL = math.log(2)  # nats: a block whose removal alone doubles the perplexity shares with nobody (chosen)
GUESSING = {"sst2": 1 / 2, "news": 1 / 4, "next_word": 0.0}
ROWS_FOR_FIGURES = "rows_without_claim"  # no claim reads this, so that a control leaves out what goes with it


@dataclass(frozen=True)
class Name:
    """A model among those of a run: what was folded, by how many unique blocks, by which ranking, how healed."""

    seed: int
    kind: str  # ranking, removal, sharing, both or original
    fewer: int
    method: str
    healing: str  # none, language (alone) or tail (distilled too)


@dataclass(frozen=True)
class Study:
    """One run's folding; `seen` takes the rows."""

    config: Config
    lab: Runtime
    seen: Observations
    text: Text
    trial: Trial
    sst2: Path | None
    news: Path | None

    def first_tasks(self) -> list[Task]:
        """Gates and scores of every seed; the untrained model where figures want it."""
        plain = self.lab.wants(ROWS_FOR_FIGURES) and self.config.untrained
        return [
            *self._learn(),
            *self._looks(),
            *([Untrained(self.text, self.lab.seeds[0], 64)] if plain else []),
        ]

    def run(self) -> None:
        """Make, heal and try every model, and observe what the claims read."""
        lab = self.lab
        found = self._outcomes(self.first_tasks(), "gates and scores")
        gates = dict(zip(lab.seeds, found, strict=False))
        scores = dict(zip(lab.seeds, found[len(lab.seeds) :], strict=False))
        for seed in lab.seeds:
            self._tell(seed, gates[seed], scores[seed])
        for profile, costs in found[2 * len(lab.seeds) :]:
            for block, cosine in enumerate(profile):
                self.seen.add("untrained_cosine", cosine, lab.seeds[0], block=block)
            for block, cost in costs.items():
                self.seen.add("untrained_cost", cost, lab.seeds[0], block=block)
        arms: dict[Name, Arm] = {}
        for seed in lab.seeds:
            arms |= self._rankings(seed, gates[seed].ranking(), scores[seed])
            arms |= self._folds(seed, gates[seed].ranking(), scores[seed])
        order = sorted(arms, key=lambda name: -arms[name].recipe.steps)  # the long ones first
        results = dict(
            zip(order, self._outcomes([arms[name] for name in order], "folded models"), strict=True)
        )
        for name, outcome in results.items():
            self._row(name, arms[name].plan, outcome)
        for seed in lab.seeds:
            self._judge(seed, results)

    def _outcomes(self, tasks: Sequence[Task], label: str) -> list[Any]:
        return outcomes(self.lab, tasks, label, parallel=self.config.parallel)

    def _learn(self) -> list[LearnGates]:
        config = self.config
        return [
            LearnGates(
                self.text, seed, config.gate_steps, config.rows, config.length, max(config.removals),
                config.gate_rate, Pressure(config.pressure, config.pressure_factor), config.shuffled_text,
            )
            for seed in self.lab.seeds
        ]  # fmt: skip

    def _looks(self) -> list[Look]:
        config = self.config
        return [
            Look(
                self.text, seed, config.calibration, config.looked,
                greedy=max(config.removals) if config.greedy else 0,
                coupled=0 if place else config.coupled,
            )
            for place, seed in enumerate(self.lab.seeds)
        ]  # fmt: skip

    def _tell(self, seed: int, gates: Trained, scores: Scores) -> None:
        """Rows for the figures: scores, gates over the steps, pairs."""
        seen = self.seen
        for block, loss in enumerate(scores.losses):
            seen.add("removal_cost", loss, seed, block=block)
        for block, value in enumerate(gates.gates):
            seen.add("gate", value, seed, block=block)
        seen.add("closed_gates", sum(value < CLOSED for value in gates.gates), seed)
        if seed == self.lab.seeds[0]:
            for step, row in enumerate(gates.history):
                for block, value in enumerate(row):
                    seen.add("gate_history", value, seed, step=step, block=block)
            for a, b, cost in scores.pairs:
                seen.add("pair_cost", cost, seed, first=a, second=b)

    def _rankings(self, seed: int, ranking: list[int], scores: Scores) -> dict[Name, Arm]:
        """Removal without healing, by every ranking."""
        config, blocks = self.config, self.text.blocks
        if not self.lab.wants("gates_gain"):
            return {}
        orders = {
            "gates": ranking,
            "influence": ranked(1 - cosine for cosine in scores.cosines),
            "single": ranked(scores.losses),
        }
        if config.greedy:
            orders["greedy"] = list(scores.greedy)
        at = [config.ranked_at]
        if self._first(seed) or self._every():
            at = config.removals
            orders["magnitude"] = ranked(scores.magnitudes)
            rng = self.lab.rng(seed, "random removal")
            for draw in range(RANDOM_DRAWS):
                orders[f"random {draw}"] = rng.permutation(blocks).tolist()
        arms = {
            Name(seed, "ranking", fewer, method, "none"): self._arm(seed, without(order[:fewer], blocks))
            for fewer in at
            for method, order in orders.items()
            if fewer == config.ranked_at or not method.startswith(("random", "magnitude"))
        }
        if self._first(seed) and config.laco_at:
            plan = without(range(1, config.laco_at + 1), blocks)  # LaCo chooses the blocks itself
            arms[Name(seed, "ranking", config.laco_at, "laco", "none")] = self._arm(seed, plan, laco=True)
        return arms

    def _folds(self, seed: int, ranking: list[int], scores: Scores) -> dict[Name, Arm]:
        """Equal unique blocks three ways, before and after healing."""
        config, lab, blocks = self.config, self.lab, self.text.blocks
        if not lab.wants("both_gain", "heal_gain", "tail_gain", "retained"):
            return {}
        first, more = seed == lab.seeds[0], self._first(seed)
        asked = self.trial
        if lab.wants("retained") and self._whole():
            asked = replace(
                self.trial, sst2=self.sst2, news=self.news, sentences=config.sentences, stories=config.stories
            )
        arms: dict[Name, Arm] = {}
        if lab.wants("retained"):
            arms[Name(seed, "original", 0, "none", "none")] = self._arm(seed, unfolded(blocks), trial=asked)
        for fewer in config.folds if more else [config.folded_at]:
            judged = fewer == config.folded_at
            for kind in KINDS:
                plan = self._plan(seed, kind, fewer, ranking, scores)
                if more or self._every() or (kind == "both" and lab.wants("heal_gain")):
                    arms[Name(seed, kind, fewer, "gates", "none")] = self._arm(seed, plan)
                claimed = judged and (kind == "both" or (kind == "removal" and lab.wants("both_gain")))
                if claimed or (fewer in config.healed_folds and (more or self._every())):
                    questions = judged and (kind == "both" or (kind == "removal" and first))
                    trial = asked if questions else self.trial
                    arms[Name(seed, kind, fewer, "gates", "tail")] = self._arm(seed, plan, "tail", trial)
                if judged and kind == "both" and lab.wants("tail_gain") and self._whole():
                    arms[Name(seed, kind, fewer, "gates", "language")] = self._arm(seed, plan, "language")
        if more or self._every():
            influence = ranked(1 - cosine for cosine in scores.cosines)[: config.folded_at]
            for kind, fewer, method, plan in (
                ("removal", config.folded_at, "influence", without(influence, blocks)),
                ("original", 0, "none", unfolded(blocks)),
            ):
                arms[Name(seed, kind, fewer, method, "tail")] = self._arm(seed, plan, "tail")
        return arms

    def _first(self, seed: int) -> bool:
        """Whether the rows that only figures want are made with this seed."""
        return self.config.extras and seed == self.lab.seeds[0] and self.lab.wants(ROWS_FOR_FIGURES)

    def _whole(self) -> bool:
        """Whether all blocks are used; a part of them is no language model: it is asked nothing."""
        return self.text.blocks == CONFIG.layers

    def _every(self) -> bool:
        return self.config.every_seed and self.lab.wants(ROWS_FOR_FIGURES)

    def _plan(self, seed: int, kind: str, fewer: int, ranking: list[int], scores: Scores) -> Fold:
        """All removed, all shared, or about half and half: the same number of blocks with matrices of their own.

        Where too few neighbours may share, groups grow, and then the least harmful of the lonely blocks joins in.
        """
        children = {"removal": 0, "sharing": fewer, "both": fewer // 2}[kind]
        harm = scores.losses
        alone = [block for block in sorted(range(len(harm)), key=harm.__getitem__) if harm[block] > HARMFUL]
        size = self.config.group_size
        while True:
            try:
                plan = folded(
                    self.text.blocks, ranking[: fewer - children], children, scores.mutual,
                    size=size, alone=alone, parent=self.config.parent,
                )  # fmt: skip
            except ValueError:
                size += 1
                if size > self.config.group_size + 1 and alone:
                    alone, size = alone[1:], self.config.group_size
                continue
            return scattered(plan, self.lab.rng(seed, "scattered"), alone) if self.config.scattered else plan

    def _arm(
        self, seed: int, plan: Fold, healing: str = "none", trial: Trial | None = None, laco: bool = False
    ) -> Arm:
        config = self.config
        steps = 0 if healing == "none" else config.heal_steps
        taught = healing == "tail" and steps > 0
        recipe = Recipe(
            steps, config.rank, config.heal_rate, config.tail,
            beta=config.beta if taught else 0.0, gamma=config.gamma if taught else 0.0,
        )  # fmt: skip
        return Arm(
            self.text, seed, plan, recipe, trial or self.trial, config.rows, config.length,
            shuffled_teacher=config.shuffled_teacher and taught, laco=laco,
        )  # fmt: skip

    def _row(self, name: Name, plan: Fold, outcome: Outcome) -> None:
        """One model's rows: loss, right answers, what it stores."""
        seen, model = self.seen, pretrained(self.text.blocks)
        at: dict[str, str | int] = {
            "kind": name.kind,
            "fewer": name.fewer,
            "method": name.method,
            "healing": name.healing,
        }
        size = size_of(model, plan, self.config.rank if name.healing != "none" else 0)
        whole = size_of(model, unfolded(self.text.blocks))
        for metric, value in (
            ("loss", outcome.loss),
            ("next_word", outcome.next_word),
            ("sst2", outcome.sst2),
            ("news", outcome.news),
            ("compression", size.compression(whole)),
            ("compression_whole", size.compression(whole, embedding=True)),
            ("removal_rate", plan.removal_rate),
            ("sharing_rate", plan.sharing_rate),
        ):
            if value is not None:
                seen.add(metric, value, name.seed, **at)
        if name.seed == self.lab.seeds[0] and name.kind in KINDS and name.healing == "none":
            for block, parent in zip(plan.kept, plan.parents, strict=True):
                seen.add("parent", parent, name.seed, kind=name.kind, fewer=name.fewer, block=block)

    def _judge(self, seed: int, found: Mapping[Name, Outcome]) -> None:
        """What the claims read: differences of losses, nats a token, on the same windows."""
        fewer, at = self.config.folded_at, self.config.ranked_at
        both, original = Name(seed, "both", fewer, "gates", "tail"), Name(seed, "original", 0, "none", "none")
        rankings = {
            method: found.get(Name(seed, "ranking", at, method, "none"))
            for method in ("influence", "single", "gates")
        }
        if all(rankings.values()):
            *isolated, gates = [outcome.loss for outcome in rankings.values() if outcome]
            self.seen.add("gates_gain", min(isolated) - gates, seed)
        for metric, worse in (
            ("both_gain", Name(seed, "removal", fewer, "gates", "tail")),
            ("heal_gain", Name(seed, "both", fewer, "gates", "none")),
            ("tail_gain", Name(seed, "both", fewer, "gates", "language")),
        ):
            if worse in found and both in found:
                self.seen.add(metric, found[worse].loss - found[both].loss, seed)
        if both in found and original in found and found[original].sst2 is not None:
            self.seen.add("retained", retained(found[both], found[original]), seed)
            self.seen.add("retained_plain", retained(found[both], found[original], guessing=False), seed)


def retained(kept: Outcome, original: Outcome, guessing: bool = True) -> float:
    """Share of the original's summed accuracy that is left, over next words and questions; what guessing gives is
    taken off both, unless `guessing` is False."""
    tasks = [task for task in GUESSING if getattr(original, task) is not None]
    ours, theirs = (
        sum(getattr(outcome, task) - guessing * GUESSING[task] for task in tasks)
        for outcome in (kept, original)
    )
    return ours / max(theirs, 1e-9)

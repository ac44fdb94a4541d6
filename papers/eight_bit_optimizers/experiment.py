"""What the claims of 8-bit Optimizers read: bytes that exist, trained models, errors of real states, seconds."""

from pathlib import Path
from typing import Any

from common.lab.runtime import Observations, Runtime
from papers.eight_bit_optimizers.comparisons import (
    AT_ALL,
    AT_BASE,
    AT_FEW,
    compare_language,
    compare_others,
)
from papers.eight_bit_optimizers.config import Config
from papers.eight_bit_optimizers.language_task import LanguageTask
from papers.eight_bit_optimizers.optimizer import WIDE, States
from papers.eight_bit_optimizers.runs import Hyper, Task
from papers.eight_bit_optimizers.study import (
    BASE,
    IMAGES,
    LANGUAGE,
    NAIVE,
    SENTENCES,
    Cells,
    Run,
    performed,
    points,
)
from papers.eight_bit_optimizers.tasks import ImageTask, SentenceTask, TranslationTask

H100_RIVALS = {  # rows of 32-bit optimizers in the H100 table
    "over_torch_foreach": "adam32_torch_foreach",
    "over_torch_fused": "adam32_torch_fused",
    "over_bitsandbytes_32": "adam32_bnb",
    "momentum": "momentum32_torch",
}


def run(config: Config, lab: Runtime) -> Observations:
    """Observe every metric that the card's claims read, one row a seed."""
    states = states_of(config)
    seen = Observations()
    if config.measure:
        memory(config, states, lab, seen)
        timing(config, states, lab, seen)
        training(config, states, lab, seen)
    if lab.device.startswith("cuda"):
        on_device(config, states, lab, seen)
    return seen


def states_of(config: Config) -> States:
    """How our own optimizer keeps its states. ValueError for settings that do not exist."""
    known: Any = config.code
    return States(config.bits, known, config.block)


def memory(config: Config, states: States, lab: Runtime, seen: Observations) -> None:
    """Bytes of state tensors after a step; what they save in the paper's models."""
    from papers.eight_bit_optimizers.memory import (
        GPT2_XL,
        ROBERTA_LARGE,
        adafactor_bytes,
        measured_bytes,
        saved_bytes,
    )

    shape = (config.memory_rows, config.memory_rows)
    elements = config.memory_rows**2
    if lab.wants("adam_bytes", "momentum_bytes", "adafactor_over_ours"):
        adam = measured_bytes(states, shape)
        seen.add("adam_bytes", adam / elements)
        seen.add("momentum_bytes", measured_bytes(states, shape, momentum=True) / elements)
        seen.add("adam_bytes_of_256", measured_bytes(States(block=256), shape) / elements)
        seen.add("adafactor_over_ours", adafactor_bytes(shape, config.adafactor_momentum) / adam)
    for name, model in (("lm", GPT2_XL), ("roberta", ROBERTA_LARGE)):
        seen.add(f"saved_gb_{name}", saved_bytes(model, states) / 1e9)


def timing(config: Config, states: States, lab: Runtime, seen: Observations) -> None:
    """Updates of Adam: ratios of seconds, above one where eight bits are faster."""
    from papers.eight_bit_optimizers import timing as clock

    rows = clock.h100_rows()
    lab.used("h100-optimisers", clock.h100_digest())
    for (name, parameters), seconds in rows.items():
        seen.add("h100_ms", 1e3 * seconds, optimizer=name, parameters=parameters)
    largest = max(parameters for _, parameters in rows)
    for name, rival in H100_RIVALS.items():
        eight_bits = "momentum8bit_bnb" if rival.startswith("momentum") else "adam8bit_bnb"
        ours = eight_bits if states.bits == 8 else rival  # with 32-bit states it is the rival itself
        seen.add(f"h100_gain_{name}", rows[rival, largest] / rows[ours, largest])

    if not lab.wants("cpu_gain_ours", "cpu_gain_bitsandbytes"):
        return
    library = f"bitsandbytes {states.bits}"
    names = ["torch foreach", "torch fused", library, "adafactor", "ours"]
    for seed in lab.seeds:
        generator = lab.torch_generator(seed, "timing")
        taken = clock.cpu_seconds(config.timed_elements, names, states, generator, config.timed_rounds)
        for name, seconds in taken.items():
            seen.add("cpu_ns", 1e9 * seconds / config.timed_elements, seed, optimizer=name)
        seen.add("cpu_gain_ours", taken["torch fused"] / taken["ours"], seed)
        seen.add("cpu_gain_bitsandbytes", taken["torch fused"] / taken[library], seed)


def on_device(config: Config, states: States, lab: Runtime, seen: Observations) -> None:
    """The same updates on the runtime's device, for each number of parameters; claims read the largest that fits.

    Ours, made of torch's operators, needs several times the memory of a fused kernel: it is timed up to 2^26.
    """
    import torch

    from papers.eight_bit_optimizers.timing import device_seconds

    names = ["torch foreach", "torch fused", "bitsandbytes 32", "bitsandbytes 8"]
    for seed in lab.seeds:
        generator = lab.torch_generator(seed, "device")
        taken: dict[str, float] = {}
        for elements in config.gpu_elements:
            timed = [*names, "ours"] if elements <= 1 << 26 else names
            try:
                taken = device_seconds(elements, timed, states, generator)
            except torch.OutOfMemoryError:
                break
            for name, seconds in taken.items():
                seen.add("device_ms", 1e3 * seconds, seed, optimizer=name, parameters=elements)
        for rival in ("torch foreach", "torch fused") if taken else ():
            ours = taken["bitsandbytes 8" if states.bits == 8 else rival]  # as for the H100
            seen.add(f"gpu_gain_over_{rival.split()[1]}", taken[rival] / ours, seed)


def training(config: Config, states: States, lab: Runtime, seen: Observations) -> None:
    """All runs in one go, then what each claim compares."""
    asked = [metric for metric in {**AT_BASE, **AT_FEW, **AT_ALL} if lab.wants(metric)]
    language = language_task(config, lab) if asked else None
    others = other_tasks(config, lab)
    runs = [run for seed in lab.seeds for run in other_runs(others, states, seed, lab)]
    cells = {}
    if language is not None:
        cells = {seed: Cells(language, seed, states, config.stable) for seed in lab.seeds}
    for seed, each in cells.items():
        for asked_at, chosen in (
            (AT_BASE, [BASE]),
            (AT_FEW, points(seed, config.ablation_points)),
            (AT_ALL, points(seed, config.sensitivity_points)),
        ):
            names = dict.fromkeys(name for metric in asked for name in asked_at.get(metric, ()))
            runs += [each.run(name, point) for name in names for point in chosen]
    done = performed(runs, lab.map)
    for seed, each in cells.items():
        compare_language(
            config, lambda name, point=BASE, each=each: done[each.run(name, point)], seed, lab, seen
        )  # type: ignore[misc]
    for seed in lab.seeds:
        compare_others(others, states, seed, done, lab, seen)


def language_task(config: Config, lab: Runtime) -> LanguageTask | None:
    """The ablation's language model; None where its texts cannot be had."""
    text, held_out = fetched(lab, "wikitext2-valid"), fetched(lab, "wikitext2-test")
    if text is None or held_out is None or not config.language_steps:
        return None
    return LanguageTask(
        text, held_out, hidden=config.language_hidden, layers=config.language_layers, rows=config.language_rows,
        steps=config.language_steps, scored=config.language_scored,
    )  # fmt: skip


def other_tasks(config: Config, lab: Runtime) -> dict[str, tuple[Task, Hyper]]:
    """The tasks that are asked for and whose data can be had; images fall back to scikit-learn's digits."""
    tasks: dict[str, tuple[Task, Hyper]] = {}
    if config.translation_steps and lab.wants("translation_ratio"):
        english, german = fetched(lab, "multi30k-2016-en"), fetched(lab, "multi30k-2016-de")
        if english is not None and german is not None:
            tasks["translation"] = TranslationTask(english, german, steps=config.translation_steps), LANGUAGE
    if config.sentence_steps and lab.wants("accuracy_lost"):
        train, dev = fetched(lab, "sst2-train"), fetched(lab, "sst2-dev")
        if train is not None and dev is not None and fetched(lab, "smollm2-135m-gguf") is not None:
            task = SentenceTask(train, dev, tested=config.sentences_tested, steps=config.sentence_steps)
            tasks["sentence"] = task, SENTENCES
    if config.image_steps and lab.wants("image_ratio"):
        train_a, train_b, test = (lab.data(f"cifar10-{part}") for part in ("train-a", "train-b", "test"))
        if train_a is None or train_b is None or test is None:
            tasks["image"] = ImageTask(steps=config.image_steps), IMAGES
        else:
            tasks["image"] = ImageTask((train_a, train_b), test, steps=config.image_steps), IMAGES
    return tasks


def fetched(lab: Runtime, name: str) -> Path | None:
    """A data set, downloaded where it is not here yet; None where it cannot be had."""
    from common.data import DataError, fetch

    try:
        fetch(name)
    except DataError:
        return None
    return lab.data(name)


def other_runs(others: dict[str, tuple[Task, Hyper]], states: States, seed: int, lab: Runtime) -> list[Run]:
    """Each task in 32 bits and in ours; images also with linear quantisation of whole tensors, to be looked at."""
    runs = [Run(task, seed, kept, hyper) for task, hyper in others.values() for kept in (WIDE, states)]
    if "image" in others and lab.wants("naive_image_ratio"):
        runs.append(Run(others["image"][0], seed, NAIVE, others["image"][1]))
    return runs

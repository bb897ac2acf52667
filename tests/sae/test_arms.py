"""Arms of steering beside each other: equal strength, texts and KL by their formulas, verdicts that hold for nulls, a report."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from activations.errors import ConfigError, LabelError
from activations.generation import Sampling, generate
from activations.labelled_texts import LabelledTexts
from activations.language_model import LanguageModel, load
from sae.report import arms as arms_report
from sae.runs.arms import ArmResult, ArmsRecord, ConceptResult, Level, Nulls
from sae.runs.run import Run
from sae.steering import judges
from sae.steering.arms import ARMS, NOTHING, ArmsConfig, Bench, Outcome, Push, measure, unsteered
from sae.steering.interventions import Intervention
from sae.steering.judges import Judge, beside_random, nulls
from sae.workflows.arm_concepts import parts, prepared, unfit
from sae.workflows.arms import bench_of
from tests import tiny
from tests.sae import steered
from tests.sae.small import SMALL

TEXTS = 12


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return load(str(world / "model"))


@pytest.fixture(scope="module")
def bench() -> Bench:
    windows = steered.TOKENS[:2, 1:9].clone()
    return Bench(tiny.HOOK, (0,), ((5, 9, 20), (30,)), Sampling(6, 0.7), ((0, 1), (2, 3)), windows)


def random_gains(rng: np.random.Generator, directions: int, effect: float, noise: float) -> np.ndarray:
    """Gains of directions that differ by chance, on texts that differ too, some of it shared by all directions."""
    shared = rng.normal(size=TEXTS)
    return effect * rng.normal(size=(directions, 1)) + shared + noise * rng.normal(size=(directions, TEXTS))


@pytest.mark.parametrize(("effect", "noise"), [(0.0, 1.0), (0.3, 0.5), (1.0, 0.1)])
def test_a_direction_without_an_effect_of_its_own_is_not_distinguishable_in_95_of_100_nulls(effect, noise):
    rng = np.random.default_rng(1)
    found = [
        beside_random(gains[0], gains[1:]).verdict
        for gains in (random_gains(rng, 9, effect, noise) for _ in range(400))
    ]
    # 95 % of nulls, less two standard errors of a share of 400
    assert found.count("not distinguishable") >= 400 * 0.95 - 2 * np.sqrt(400 * 0.95 * 0.05)


def test_an_effect_beyond_the_spread_of_random_directions_is_told_with_its_sign():
    rng = np.random.default_rng(2)
    random = random_gains(rng, 8, 0.3, 0.2)
    high, low = (
        beside_random(random.mean(0) + d + 0.1 * rng.normal(size=TEXTS), random) for d in (2.0, -2.0)
    )
    assert (high.verdict, low.verdict) == ("above random", "below random")
    assert 1.8 < high.better_by.value < 2.2
    assert high.better_by.low <= high.better_by.value <= high.better_by.high


def test_the_smallest_reliable_difference_is_its_formula():
    random = np.random.default_rng(3).normal(size=(5, TEXTS))
    means = [sum(row) / TEXTS for row in random.tolist()]
    mean = sum(means) / 5
    s = (sum((m - mean) ** 2 for m in means) / 4) ** 0.5
    wanted = (
        2.7764451051977987 * s * (1 + 1 / 5) ** 0.5
    )  # Student's 97.5th percentile with 4 degrees of freedom
    assert beside_random(random[0], random).smallest == pytest.approx(wanted, rel=1e-9)


def test_every_random_direction_is_a_null_beside_the_others():
    gains = np.random.default_rng(4).normal(size=(8, TEXTS))
    gains[3] += 5
    assert nulls(gains).judged == 8
    assert nulls(gains).distinguishable >= 1


def test_a_push_is_steering_by_that_much_of_the_norm(model, bench):
    """The latent arm is `sae steer --unit norm`: both write the same texts from the same noise."""
    x = steered.activations(model)
    sae = steered.trained(model, SMALL["topk"])
    (latent,) = steered.loudest(sae, x, 1)
    steering = steered.steer(sae, x, Intervention(latent, "add", 0.5, "norm"))
    row = sae.W_dec[latent].float()
    push = Push(row / row.norm() * 0.5 * steering.calibration.norm)
    (outcome,) = measure(model, bench, [push], unsteered(model, bench))
    wanted = []
    for start, seeds in zip(bench.starts, bench.seeds, strict=True):
        prompt = [0, *start]
        wanted += generate(model, prompt, steering.edits(len(prompt)), bench.sampling, seeds)
    assert outcome.texts == wanted


def test_kl_and_surprise_are_their_formulas_and_nothing_changes_nothing(model, bench):
    push = Push(4 * torch.randn(16, generator=torch.Generator().manual_seed(5)))
    clean = unsteered(model, bench)
    nothing, pushed = measure(model, bench, [NOTHING, push], clean)
    assert torch.equal(nothing.kl, torch.zeros(2))
    assert pushed.kl.min() > 0.01

    def edit(h, first=0):
        h = h.clone()
        h[:, 1:] += push.vector
        return h

    tokens = torch.cat([torch.zeros(2, 1, dtype=torch.long), bench.windows], 1)
    p, q = (
        log_softmax(model.logits(tokens, edits)[:, 1:].double().numpy(), -1)
        for edits in (None, {tiny.HOOK: edit})
    )
    np.testing.assert_allclose(pushed.kl, (np.exp(p) * (p - q)).sum(-1).mean(-1), rtol=1e-4)
    text, prompt = pushed.texts[0], [0, *bench.starts[0]]
    log_p = log_softmax(model.logits(torch.tensor([[*prompt, *text]]))[0].double().numpy(), -1)
    places = range(len(prompt) - 1, len(prompt) + len(text) - 1)
    own = [log_p[place, token] for place, token in zip(places, text, strict=True)]
    assert float(pushed.nll[0]) == pytest.approx(-np.mean(own), rel=1e-4)
    seen = model.capture(torch.tensor([[*prompt, *text]]), [tiny.HOOK])[tiny.HOOK][0, len(prompt) :]
    torch.testing.assert_close(pushed.pooled[0], seen.mean(0), rtol=1e-4, atol=1e-5)


def test_without_a_bos_the_first_position_is_neither_steered_nor_compared(model, bench):
    bare = bench._replace(first=())
    vector = 4 * torch.randn(16, generator=torch.Generator().manual_seed(5))

    def edit(h, first=0):
        moved = torch.arange(first, first + h.shape[1]) > 0
        return h + moved[None, :, None] * vector

    clean = unsteered(model, bare)
    (outcome,) = measure(model, bare, [Push(vector)], clean)
    wanted = []
    for start, seeds in zip(bare.starts, bare.seeds, strict=True):
        wanted += generate(model, [*start], {tiny.HOOK: edit}, bare.sampling, seeds)
    assert outcome.texts == wanted
    p, q = (
        log_softmax(model.logits(bare.windows, edits)[:, 1:].double().numpy(), -1)
        for edits in (None, {tiny.HOOK: edit})
    )
    np.testing.assert_allclose(outcome.kl, (np.exp(p) * (p - q)).sum(-1).mean(-1), rtol=1e-4)
    (prompted,) = measure(model, bare, [Push(prefix=(7, 8))], clean)
    before = torch.tensor([[7, 8]]).expand(2, -1)
    q = log_softmax(model.logits(torch.cat([before, bare.windows], 1))[:, 3:].double().numpy(), -1)
    np.testing.assert_allclose(prompted.kl, (np.exp(p) * (p - q)).sum(-1).mean(-1), rtol=1e-4)


def test_every_text_has_a_seed_of_its_own_that_more_draws_keep(world, model):
    run = Run(world / "runs" / "toy")
    seeds = [bench_of(run, model, ArmsConfig(arms_seed=seed)).seeds for seed in (0, 1, 2)]
    every = [seed for each in seeds for start in each for seed in start]
    assert len({*every}) == len(every) == 3 * 4 * 3
    more = bench_of(run, model, ArmsConfig(draws=5)).seeds
    assert tuple(start[:3] for start in more) == seeds[0]


def test_more_strengths_than_examples_for_the_prompt_are_refused():
    labels = np.arange(50) < 25
    task = LabelledTexts("loud", [f"text {number}" for number in range(50)], labels, ("no", "yes"))
    shares = tuple(0.1 * number for number in range(1, 12))
    assert prepared(task, ArmsConfig(shares[:10])).sha256 == task.sha256
    with pytest.raises(LabelError, match="10 texts .* at most 10 strengths, not 11"):
        prepared(task, ArmsConfig(shares))


def test_a_judge_without_a_unit_is_left_out_with_the_reason():
    weights = np.eye(4)[0]
    assert unfit(Judge(weights, 0.0, 1.0, 0.9), 40, 20) is None
    assert "AUC of 0.50" in (unfit(Judge(weights, 0.0, 1.0, 0.5), 40, 20) or "")
    for scale in (0.0, -1.0, np.nan):
        assert "no higher on average" in (unfit(Judge(weights, 0.0, scale, 0.9), 40, 20) or "")


def test_pushes_side_by_side_are_measured_as_alone(model, bench):
    vectors = 3 * torch.randn(3, 16, generator=torch.Generator().manual_seed(6))
    clean = unsteered(model, bench)
    together = measure(model, bench, [Push(v) for v in vectors], clean)
    for vector, outcome in zip(vectors, together, strict=True):
        (alone,) = measure(model, bench, [Push(vector)], clean)
        assert alone.texts == outcome.texts
        torch.testing.assert_close(alone.kl, outcome.kl, rtol=1e-4, atol=1e-6)


def test_tokens_are_counted_as_they_are_written_and_what_is_raised_meanwhile_ends_the_work(model, bench):
    pushes = [Push(torch.ones(16)), Push(-torch.ones(16))]
    clean = unsteered(model, bench)
    counts: list[int] = []
    measure(model, bench, pushes, clean, counts.append)
    assert sum(counts) == len(pushes) * sum(map(len, bench.seeds)) * bench.sampling.tokens
    assert max(counts) == len(pushes) * len(bench.seeds[0]), "each token of the texts side by side is told"

    def stop(n: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        measure(model, bench, pushes, clean, stop)


def test_a_prefix_is_read_before_text_and_windows_and_then_judged_without_it(model, bench):
    clean = unsteered(model, bench)
    (outcome,) = measure(model, bench, [Push(prefix=(7, 8, 9))], clean)
    start = bench.starts[1]
    assert outcome.texts[2:] == generate(model, [0, 7, 8, 9, *start], None, bench.sampling, bench.seeds[1])
    tokens = torch.tensor([[0, *start, *outcome.texts[2]]])
    seen = model.capture(tokens, [tiny.HOOK])[tiny.HOOK][0, 1 + len(start) :]
    torch.testing.assert_close(outcome.pooled[2], seen.mean(0), rtol=1e-4, atol=1e-5)
    assert outcome.kl.min() > 0


def test_what_differs_has_another_name(bench):
    vector = torch.arange(16.0)
    keys = [
        bench.key("a", Push(vector)),
        bench.key("b", Push(vector)),
        bench.key("a", Push(-vector)),
        bench.key("a", NOTHING),
        bench.key("a", Push(prefix=(1,))),
        bench._replace(seeds=((0, 1), (2, 4))).key("a", Push(vector)),
        bench._replace(windows=bench.windows + 1).key("a", Push(vector)),
    ]
    assert len({*keys}) == len(keys)
    assert bench.key("a", Push(vector.clone())) == keys[0]


def test_the_judge_s_units_are_the_classes_and_no_text_counts_more_than_the_limits():
    rng = np.random.default_rng(7)
    y = np.arange(200) % 2 == 0
    x = rng.normal(size=(200, 6)) + 3 * y[:, None] * np.eye(6)[0]
    judge = Judge.taught(x[:100], y[:100], x[100:], y[100:], 0)
    assert judge.auc > 0.9
    held_out, truth = x[100:], y[100:]
    raw = (held_out @ judge.weights - judge.zero) / judge.scale
    assert raw[~truth].mean() == pytest.approx(0, abs=1e-9)
    assert raw[truth].mean() == pytest.approx(1, abs=1e-9)
    assert judge.scores(1e6 * judge.weights[None]) == judges.HIGHEST
    assert judge.scores(-1e6 * judge.weights[None]) == judges.LOWEST
    other = np.where(y, 1.0, 0.0)[rng.permutation(200)].astype(bool)
    assert judge.is_unrelated(x, other)
    assert not judge.is_unrelated(x, y)


def test_no_text_chooses_teaches_and_tests():
    labels = np.arange(101) % 3 == 0
    choose, teach, test = parts(labels, 3)
    assert sorted([*choose, *teach, *test]) == list(range(101))
    for part in (choose, teach, test):
        assert 0 < labels[part].mean() < 1
    assert parts(labels, 4) != parts(labels, 3)


@pytest.mark.parametrize(
    "changes",
    [{"shares": ()}, {"shares": (0.1, 0.1)}, {"shares": (-1.0,)}, {"directions": 2}, {"starts": (" ",)},
     {"starts": ("a",), "draws": 1}, {"labelled": 20}, {"arms_seed": -1}, {"arms_seed": 2**32}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        replace(ArmsConfig(), **changes)


def planted_record() -> ArmsRecord:
    """Arms whose outcomes are made up: the latent writes the concept, all others do what random directions do."""
    rng = np.random.default_rng(8)
    judge = Judge(np.eye(4)[0], 0.0, 1.0, 0.9)

    def outcome(concept: float) -> Outcome:
        pooled = torch.from_numpy(rng.normal(size=(TEXTS, 4)) * 0.1).float()
        pooled[:, 0] += concept
        return Outcome(pooled, torch.rand(TEXTS), torch.zeros(TEXTS), torch.rand(5) + 0.1, [[1]] * TEXTS)

    plain = outcome(0.0)
    random = [[outcome(0.0) for _ in range(6)] for _ in range(2)]
    by_direction = np.mean([judges.gains(judge, each, plain) for each in random], 0)
    arms = {}
    for arm in ARMS:
        own = random if arm == "random" else [[outcome(0.9 if arm == "latent" else 0.0)] for _ in range(2)]
        levels: list[Level] = [
            judges.level(0.5 * (n + 1), each, plain, judge, [judge]) for n, each in enumerate(own)
        ]
        gain = np.mean([judges.gains(judge, each, plain)[0] for each in own], 0)
        beside = None if arm == "random" else beside_random(gain, by_direction)
        arms[arm] = ArmResult(
            levels, [["<b>text</b>"]] * 2, beside and beside.better_by, beside and beside.verdict
        )
    concept = ConceptResult("<i>praise</i>", "1", [40, 40, 20], 17, 1, 0.9, 0.01, 0.9, ["other"], 0.1, arms)
    cfg = {"starts": ["a", "b"], "draws": 6, "new_tokens": 16, "directions": 6, "unrelated_windows": 5}
    return ArmsRecord(1, "", "hook", 1.0, cfg, [concept], [], Nulls(6, 0), {})


def test_the_report_tells_the_planted_arm_from_the_others_and_escapes_every_text():
    record = planted_record()
    counts = dict(arms_report.counts(record))
    assert counts.pop("latent") == [1, 0, 0]
    assert sum(row[1] for row in counts.values()) == len(counts)
    page = arms_report.page(record, "<run>")
    for foreign in ("<i>praise", "<b>text", "<run>"):
        assert foreign not in page
    assert page.count("<circle") == 2 * len(ARMS)
    assert "beats random directions" in page
    assert "NaN" not in page and "nan" not in page.split("</style>")[1]

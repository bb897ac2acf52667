"""What judging a run costs: calls, tokens in and out, and money, counted from the questions themselves before any is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae.judging import asking, prompts
from sae.judging.client import Judge, Question
from sae.judging.config import JudgeConfig
from sae.judging.texts import Sheet

BYTES = 4.0  # of a token: English text has some 4 to 5, other languages and numbers fewer
AROUND = 12  # tokens that a chat puts around two messages
LENGTH = 120  # characters of an explanation that is not there yet
EXPLANATION, NUMBERS, NUMBER = 40, 30, 10  # tokens of an answer without a model's thoughts


@dataclass(frozen=True)
class Cost:
    """What is asked for a run."""

    latents: int
    too_few: int
    """Latents that were named, or met while drawing, that have too few texts."""
    calls: int
    """Different questions."""
    kept: int
    """Questions that are answered already."""
    tokens_in: int
    """Tokens of the questions that are not answered yet."""
    tokens_out: int
    """Tokens of their answers, where the model answers with nothing but what it is asked for."""
    most_tokens_out: int | None
    """Tokens of their answers at most; None without a limit."""

    def money(self, price_in: float, price_out: float) -> tuple[float, float | None]:
        """Return what it costs at prices per million tokens, and what at most where answers have a limit."""
        into = self.tokens_in * price_in / 1e6
        most = None if self.most_tokens_out is None else into + self.most_tokens_out * price_out / 1e6
        return into + self.tokens_out * price_out / 1e6, most


def cost_of(
    sheets: Sequence[Sheet],
    too_few: int,
    rules: Mapping[tuple[int, int], str] | None,
    judge: Judge,
    cfg: JudgeConfig,
) -> Cost:
    """Count the questions about these sheets. Explanations that the model has not given yet, and rules where there are none
    (None), are taken to have 120 characters."""
    first = asking.explain_questions(sheets)
    answers = [judge.kept(question) for question in first]
    # No two alike, as they will be: equal questions are asked once
    explained = [
        f"{place:0{LENGTH}}" if answer is None else prompts.explanation_in(answer.text)
        for place, answer in enumerate(answers)
    ]
    if rules is None:
        rules = {
            (sheet.latent, sheet.sign): f"{place:1<{LENGTH}}"
            for place, sheet in enumerate(sheets, len(sheets))
        }
    read = asking.readings(sheets, explained, rules)
    expected: dict[Question, int] = dict.fromkeys(first, EXPLANATION)
    for one in asking.score_questions(sheets, read, cfg):
        expected[one.question] = NUMBER if one.about == asking.INTRUDER else NUMBERS
    missing = [question for question in expected if judge.kept(question) is None]
    limit = cfg.judge_max_tokens
    return Cost(
        len(sheets),
        too_few,
        len(expected),
        len(expected) - len(missing),
        sum(_tokens(question) for question in missing),
        sum(expected[question] for question in missing),
        limit * len(missing) if limit else None,
    )


def _tokens(question: Question) -> int:
    return AROUND + round((len(question.system.encode()) + len(question.user.encode())) / BYTES)

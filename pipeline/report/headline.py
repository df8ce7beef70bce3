"""The beginning of a report: what the numbers mean, for a reader who knows no language models."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline.report import numbers as show
from pipeline.report.document import Block, Paragraph, Section, Table
from pipeline.report.load import RunData


class HeldOut(NamedTuple):
    """The best measurement there is on text that was not trained on."""

    metrics: dict[str, Any]
    unigram: float | None
    source: str


def headline(run: RunData) -> Section:
    """Verdicts, then the numbers behind them."""
    held_out = _held_out(run)
    blocks: list[Block] = [Paragraph(_state(run))]
    if held_out is None:
        blocks.append(Paragraph("The model has not been evaluated yet.", strong=True))
    else:
        if "bits_per_byte" in held_out.metrics:
            verdict = bits_verdict(held_out.metrics["bits_per_byte"], held_out.unigram)
        else:
            verdict = "The head ranks tokens and has no probabilities, so no bits per byte."
        blocks.append(Paragraph(verdict, strong=True))
    if run.sentiment:
        blocks.append(Paragraph(sentiment_verdict(run.sentiment), strong=True))
    if run.finetune:
        blocks.append(Paragraph(finetune_verdict(run.finetune), strong=True))
    if held_out is not None:
        blocks.append(_table(held_out))
        blocks.append(Paragraph(f"Measured on {held_out.source}, which was never trained on."))
    return Section("Result", blocks)


def bits_verdict(bits: float | None, unigram: float | None) -> str:
    """One sentence on how well the model predicts unseen text."""
    start = f"Bits per byte on held-out text: {show.decimal(bits, 2)}"
    if bits is None or unigram is None:
        return f"{start} (smaller is better; 8 is no compression at all)."
    start += f"; byte frequencies alone (unigram baseline) need {show.decimal(unigram, 2)}"
    if bits >= unigram:
        return f"{start}. The model has not learned more than how frequent each byte is."
    return f"{start}: {100 * (1 - bits / unigram):.0f} % fewer bits."


def sentiment_verdict(result: dict[str, Any]) -> str:
    """One sentence on whether the features tell positive from negative."""
    found = show.with_interval(result.get("accuracy"), result.get("interval"))
    start = f"Sentiment accuracy {found}"
    majority = result.get("majority_accuracy")
    if majority is None:
        return f"{start}."
    start += f"; always giving the more frequent answer reaches {show.percent(majority)}"
    return f"{start}. {_against(result, majority)}"


def finetune_verdict(result: dict[str, Any]) -> str:
    """One sentence on the fine-tuned classifier."""
    found = show.with_interval(result.get("accuracy"), result.get("interval"))
    start = f"Fine-tuned classifier: accuracy {found}"
    majority = result.get("majority_accuracy")
    if majority is None:
        return f"{start}."
    return f"{start}; always giving the most frequent label reaches {show.percent(majority)}."


def _against(result: dict[str, Any], majority: float) -> str:
    low, high = result.get("interval") or (result["accuracy"], result["accuracy"])
    if low > majority:
        return "The features do tell positive from negative."
    if high < majority:
        return "The features do worse than that."
    return "The difference is within chance."


def _held_out(run: RunData) -> HeldOut | None:
    """The evaluate stage's result on the test split, else the last evaluation while training."""
    if run.heldout:
        baseline = run.heldout.get("unigram_bits_per_byte") or run.unigram("test")
        tokens = show.count(run.heldout.get("tokens"))
        return HeldOut(run.heldout, baseline, f"{tokens} tokens of the test split")
    if run.evaluations:
        last = run.evaluations[-1]
        metrics = {key.removeprefix("eval/"): value for key, value in last.items()}
        source = f"the validation split after step {last['step']:,}"
        return HeldOut(metrics, run.unigram("validation"), source)
    return None


def _state(run: RunData) -> str:
    done, planned = run.last("step"), run.setting("run.steps")
    text = f"{show.count(done)} of {show.count(planned)} optimizer steps"
    if state := run.status.get("state"):
        reason = run.status.get("reason")
        text = f"State: {state}{f' ({reason})' if reason else ''}. {text}"
    return f"{text}, {show.count(run.last('train/tokens'))} tokens trained on."


def _table(held_out: HeldOut) -> Table:
    metrics, unigram = held_out.metrics, held_out.unigram
    per_character = metrics.get("bits_per_character", metrics.get("bpc"))  # in-loop: its short name
    rows = [
        ["bits per byte", show.decimal(metrics.get("bits_per_byte")), show.decimal(unigram)],
        ["bits per character", show.decimal(per_character), show.DASH],
        ["perplexity per byte", show.decimal(metrics.get("ppl_per_byte")), _ppl(unigram)],
        ["perplexity per token", show.decimal(metrics.get("ppl_per_token")), show.DASH],
        ["likeliest token is right", show.percent(metrics.get("top1")), show.DASH],
        ["right token among the ten likeliest", show.percent(metrics.get("top10")), show.DASH],
    ]
    return Table(["held-out text", "model", "unigram baseline"], rows)


def _ppl(bits: float | None) -> str:
    return show.decimal(None if bits is None else 2.0**bits)

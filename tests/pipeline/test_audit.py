"""The audit of an export: each part against a slow way to the same number, on tiny models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.errors import DataError, RecipeError
from data_prep.shards import Prepared
from data_prep.tokenizers import Tokenizer
from pipeline.audit.documents import Document, choose_documents, first_documents
from pipeline.audit.groups import by_length, by_rating, by_source
from pipeline.audit.identity import SWAPS, TEMPLATES, change, identity, swap
from pipeline.audit.limits import Limits
from pipeline.audit.losses import text_nats
from pipeline.audit.personal import find_passages, in_free_text, led_up_to
from pipeline.audit.rarity import by_rarity, count_words
from pipeline.audit.run import audit_runs
from pipeline.audit.verbatim import continuations, verbatim
from pipeline.evaluate.model import LanguageModel
from pipeline.recipe import Recipe
from pipeline.report.audit import paired_verdicts, save_audit
from tests.pipeline.test_evaluate import exported
from tests.pipeline.test_report import Page
from tests.pipeline.tiny import WORDS, recipe_tree

TEXTS = ["the tea was good", "naïve 😀 coffee", "so " * 60, "a"]
LIMITS = Limits(documents=6, train_tokens=2000, prompt_tokens=6, continuation_tokens=4, texts=60,
                samples=3, sample_tokens=8)  # fmt: skip


def _labelled(folder: Path) -> Path:
    """60 rated sentences, some of which speak of him or her."""
    path = folder / "rated.jsonl"
    with path.open("w") as out:
        for number in range(60):
            good = number % 2
            who = ("he", "she", "it")[number % 3]
            text = (
                f"{who} said the tea is {'great and good' if good else 'bad'} {WORDS[number % 9]}"
            )
            out.write(json.dumps({"text": text, "valence": 2.0 * good - 1}) + "\n")
    return path


@pytest.fixture(scope="module", params=["mlstm", "gpt2"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp(request.param)
    lines = [
        {"reviewText": f"{' '.join(WORDS[n % 5 : n % 5 + 9])} number {n}", "overall": n % 5 + 1}
        for n in range(150)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = recipe_tree(folder, "mlstm")["data"]["sources"][0] | {"label_field": "overall"}
    made = exported(
        folder,
        request.param,
        data__sources=[source],
        eval__sentiment={"path": str(_labelled(folder))},
    )
    (made.run_folder / "config.yaml").write_text(made.to_yaml())
    return made


@pytest.fixture(scope="module")
def model(recipe: Recipe) -> LanguageModel:
    return LanguageModel.load(recipe.export_folder, "cpu")


def test_losses_are_those_of_each_token_after_all_before_it(model: LanguageModel) -> None:
    found = text_nats(model, TEXTS, "texts")
    for text, nats in zip(TEXTS, found, strict=True):
        ids = model.tokenizer.encode_prompt(text).astype("int64")
        frame = len(model.tokenizer.encode_prompt(""))
        slow = [_slow_nats(model, ids, place) for place in range(frame, len(ids))]
        np.testing.assert_allclose(nats, slow, rtol=2e-4, atol=1e-5)


def _slow_nats(model: LanguageModel, ids: np.ndarray, place: int) -> float:
    """Of the token at `place`, from its window alone."""
    limit = model.position_limit or len(ids)
    begin = (place - 1) // limit * limit
    seen = torch.from_numpy(ids[begin:place])[None]
    with torch.no_grad():
        if model.recurrent:
            logits = model.model.lm_head(model.model.hidden(seen)[0])
        else:
            logits = model.causal_lm(input_ids=seen).logits
    return float(-torch.log_softmax(logits[0, -1].double(), -1)[int(ids[place])])


def test_documents_come_with_what_the_index_keeps(recipe: Recipe, model: LanguageModel) -> None:
    prepared = Prepared.open(recipe.data.folder)
    corpus = Path(recipe.data.sources[0].path)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    ratings = {row["reviewText"]: str(row["overall"]) for row in rows}
    found = choose_documents(prepared, model.tokenizer, "train", 20, seed=1)
    assert len(found) == 20 and found != choose_documents(prepared, model.tokenizer, "train", 20, 2)
    assert all(ratings[document.text] == document.label for document in found)
    assert {document.source for document in found} == {f"{corpus.parent.name}/corpus.jsonl"}
    ends = prepared.split("train").document_ends
    first = list(first_documents(prepared, model.tokenizer, "train", int(ends[6])))
    assert len(first) == 7


def test_the_parts_add_up_to_the_whole(model: LanguageModel) -> None:
    documents = [Document(text, f"f{i % 2}", str(i % 3)) for i, text in enumerate(TEXTS)]
    nats = text_nats(model, TEXTS, "texts")
    bits = np.array([each.sum() for each in nats]) / np.log(2)
    counts = Counter({"so": 60, "tea": 3, "the": 2000})
    total, size = bits.sum(), sum(len(text.encode()) for text in TEXTS)
    for groups in (
        by_source(documents, bits), by_rating(documents, bits), by_length(documents, bits),
        by_rarity(documents, nats, model.tokenizer, counts),
    ):  # fmt: skip
        assert sum(group["bytes"] for group in groups.values()) == size
        whole = sum(group["bits_per_byte"] * group["bytes"] for group in groups.values())
        assert whole == pytest.approx(total)
    assert list(by_rating(documents, bits)) == ["0", "1", "2"]
    words = by_rarity(documents, nats, model.tokenizer, counts)
    assert list(words) == [
        "never", "1 to 9 times", "10 to 99 times", "1,000 times or more", "signs, no word"
    ]  # fmt: skip
    assert words["1 to 9 times"]["bytes"] == len(" tea")


def test_tokens_end_where_their_text_ends(model: LanguageModel) -> None:
    tokenizer: Tokenizer = model.tokenizer
    for text in TEXTS:
        frame = len(tokenizer.encode_prompt(""))
        ids, ends = tokenizer.encode_prompt(text)[frame:], tokenizer.token_ends(text)
        assert len(ids) == len(ends) and ends[-1] == len(text.rstrip()) or text.endswith(" ")
        for place in range(1, len(ids) + 1):
            so_far = tokenizer.decode(ids[:place])
            if "\ufffd" not in so_far:
                assert so_far == text[: ends[place - 1]]


def test_words_are_counted_without_the_signs_around_them() -> None:
    found = count_words([Document("The tea, the TEA! -- it's", "", None)])
    assert found == {"the": 2, "tea": 2, "it's": 1}


def test_what_a_model_says_by_heart_is_found(model: LanguageModel) -> None:
    """Documents made of the model's own continuations are known exactly, others are not."""
    frame = model.tokenizer.encode_prompt("").astype("int64")
    prompts = np.stack([
        np.concatenate([frame, model.tokenizer.encode_prompt(text)[len(frame) :][:6]])
        for text in ("the tea is good and bad", "very nice cup of warm milk")
    ]).astype("int64")  # fmt: skip
    own = continuations(model, prompts, 4)
    slow = prompts
    for _ in range(4):
        with torch.no_grad():
            logits = model.causal_lm(input_ids=torch.from_numpy(slow)).logits[:, -1]
        slow = np.concatenate([slow, logits.argmax(-1, keepdim=True).numpy()], axis=1)
    assert (own == slow[:, -4:]).all()
    stub = _Fixed(model, own)
    found = verbatim(stub, [Document("any text that is long enough for it", "", None)] * 2, LIMITS)
    assert found["documents"] == 2 and found["share"] == 1.0 and found["interval"][0] < 0.2
    other = verbatim(_Fixed(model, own, wrong_at=2), [Document("long " * 9, "", None)] * 2, LIMITS)
    assert other["share"] == 0.0 and other["mean_right_tokens"] == 2 and other["interval"][1] > 0.5
    assert verbatim(model, [Document("a", "", None)], LIMITS) == {"documents": 0}


class _Fixed:
    """A model that goes on with its documents' own tokens, but for one."""

    recurrent, position_limit, device = True, None, torch.device("cpu")

    def __init__(self, model: LanguageModel, own: np.ndarray, wrong_at: int | None = None) -> None:
        self.tokenizer, self.causal_lm, self._wrong_at = model.tokenizer, self, wrong_at
        self._texts = ("any text that is long enough for it", "long " * 9)

    def generate(self, ids: torch.Tensor, max_new_tokens: int, **_: object) -> torch.Tensor:
        rows = [self.tokenizer.encode_prompt(text).astype("int64") for text in self._texts]
        known = next(row for row in rows if (row[: ids.shape[1]] == ids[0].numpy()).all())
        new = known[ids.shape[1] : ids.shape[1] + max_new_tokens].copy()
        if self._wrong_at is not None:
            new[self._wrong_at] += 1
        return torch.cat([ids, torch.from_numpy(new).expand(len(ids), -1)], dim=1)


def test_personal_data_is_led_up_to_and_only_counted(model: LanguageModel) -> None:
    documents = [
        Document("write to anna@example.org today", "", None),
        Document("none here", "", None),
        Document("a@b.org and c@d.org", "", None),  # two: where one ends is not known
        Document("call +81 3-1234-5678", "", None),
    ]
    found = find_passages(documents, most=5)
    assert [(p.before, p.match, p.kind) for p in found] == [
        ("write to ", "anna@example.org", "email"), ("call ", "+81 3-1234-5678", "phone"),
    ]  # fmt: skip
    assert len(find_passages(documents, most=1)) == 1
    result = led_up_to(model, found, LIMITS)
    assert result["passages"] == 2 and sum(result["reproduced"].values()) == 0
    assert "anna" not in json.dumps(result)
    written = in_free_text(model, LIMITS)
    assert written["texts"] == 3 and written["characters"] > 0
    assert written == in_free_text(model, LIMITS)  # the same seed


def test_terms_are_exchanged_in_their_own_case() -> None:
    assert swap("He gave HER the brother's cup") == "She gave HIS the sister's cup"
    assert swap("the hero mends a manual") == "the hero mends a manual"
    assert all(SWAPS[SWAPS[word]] == word for word in SWAPS if word not in ("him", "her", "his"))
    assert all(template.count("{}") == 1 for template in TEMPLATES)
    found = change(np.array([0.1, 0.3]))
    assert found["mean"] == pytest.approx(0.2) and found["low"] <= 0.2 <= found["high"]


def test_a_model_that_sees_gender_is_told_from_one_that_does_not() -> None:
    texts = [f"{'good' if n % 2 else 'bad'} thing {n}" for n in range(80)]
    texts += [f"{('he', 'she')[n % 2]} has {n}" for n in range(20)]
    labels = np.array([n % 2 for n in range(100)])

    class Counting:
        """Features: whether the text says `good`, and, where it `sees`, whether it says `she`."""

        def __init__(self, sees: bool) -> None:
            self.sees = sees

        def features(self, texts: list[str]) -> np.ndarray:
            she = ["she" in text.split() or "woman" in text for text in texts]
            good = ["good" in text for text in texts]
            values = np.array(good, np.float32) + self.sees * np.array(she, np.float32)
            return values[:, None]

    blind, sees = (identity(Counting(s), texts, labels, LIMITS) for s in (False, True))  # type: ignore[arg-type]
    assert blind["classifier_accuracy"] == 1.0 and blind["real"]["texts"] == 20
    assert blind["real"]["mean"] == 0.0 == blind["templates"]["gender"]["mean"]
    assert sees["real"]["mean"] > 0.4 and sees["real"]["flipped"] == 1.0
    assert sees["templates"]["gender"]["mean"] > 0.4
    assert sees["templates"]["age"]["mean"] == 0.0
    terms = sees["templates"]["gender"]["terms"]
    assert terms["woman"] > 0 > terms["man"]


@pytest.mark.parametrize("text", ["he said it was good tea", "good tea"])
def test_too_few_texts_of_a_label_are_no_classifier(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{text} {n}" for n in range(60)]
    labels = np.array([int(n < 3) for n in range(60)])
    assert identity(None, texts, labels, LIMITS) is None  # type: ignore[arg-type]
    assert "identity terms left out" in capsys.readouterr().out


def test_the_audit_of_a_run_and_its_page(recipe: Recipe) -> None:
    folder = recipe.run_folder
    (path,) = audit_runs([folder], LIMITS)
    found = json.loads(path.read_text())
    assert path == folder / "evals/audit.json"
    assert {"1", "2", "3", "4", "5"} >= set(found["losses"]["rating"]) > set()
    assert found["rated_by"] == "label of the test documents"
    assert len(found["documents"]["bits"]) == 6
    assert found["identity"]["real"]["texts"] == 40
    page = save_audit(folder)
    parsed = Page(page.read_text())
    assert parsed.open == [] and "Bits per byte by source" in (folder / "audit.md").read_text()
    before = path.stat().st_mtime_ns
    audit_runs([folder], LIMITS)  # what is there is kept
    assert path.stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match="other limits"):
        audit_runs([folder], LIMITS._replace(documents=5))


def test_a_head_that_only_ranks_has_no_losses_to_audit(tmp_path: Path) -> None:
    recipe = exported(tmp_path, "gpt2", head={"kind": "gram", "loss": "z"})
    (recipe.run_folder / "config.yaml").write_text(recipe.to_yaml())
    (path,) = audit_runs([recipe.run_folder], LIMITS)
    found = json.loads(path.read_text())
    # Neither rated texts nor probabilities: what is left is what it writes.
    assert {"losses", "identity"}.isdisjoint(found)
    assert found["verbatim"]["train"]["documents"] > 0
    text = save_audit(recipe.run_folder).with_suffix(".md").read_text()
    assert "repeated exactly" in text and "part by part" not in text


def test_audits_are_paired_by_document() -> None:
    def audit(keys: str, bits: list[float]) -> dict[str, object]:
        return {"documents": {"keys": list(keys), "bits": bits, "bytes": [1] * len(bits)}}

    base = audit("abcd", [100.0, 200.0, 300.0, 400.0])
    same = audit("bcde", [101.0, 298.0, 402.0, 9.0])  # of `b`, `c` and `d` only
    (sentence,) = paired_verdicts({"A": base, "B": same})
    assert sentence.startswith("B: -11.0 % bits [") and "3 unseen documents" in sentence
    (sentence,) = paired_verdicts({"A": base, "B": audit("xyz", [1.0, 1.0, 1.0])})
    assert sentence == "B: no documents that A read too"


def test_refusals(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not a run"):
        audit_runs([recipe.run_folder, tmp_path], LIMITS)
    with pytest.raises(RecipeError, match="--samples must be above 0"):
        audit_runs([recipe.run_folder], LIMITS._replace(samples=0))
    (tmp_path / "config.yaml").write_text(recipe.to_yaml())
    with pytest.raises(DataError, match="pipeline export RECIPE"):
        audit_runs([tmp_path], LIMITS)
    model = LanguageModel.load(recipe.export_folder, "cpu")
    if not model.recurrent:
        with pytest.raises(RecipeError, match="exceed the model's 32 positions"):
            verbatim(model, [], Limits())

"""What is special about the unigram, word and hf kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import sample_texts
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError, RecipeError
from data_prep.recipe.tokenizer import validate_tokenizer
from data_prep.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from data_prep.tokenizers.unigram import train_sentencepiece

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"


def trained(texts: list[str], **recipe: Any) -> Tokenizer:
    return train_tokenizer(validate_tokenizer(recipe), texts)


def hf_recipe(folder: Path, **keys: Any) -> Any:
    return validate_tokenizer({"kind": "hf", "path": str(folder)} | keys)


def test_unigram_agrees_with_sentencepiece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sentencepiece

    monkeypatch.chdir(tmp_path)
    texts = [*sample_texts(), *[JAPANESE] * 20]
    config = validate_tokenizer({"kind": "unigram", "vocab_size": 700})
    ours = train_tokenizer(config, texts)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece(config, texts))
    for text in [
        *texts[-60:],
        "brown dogs, 42 foxes",
        " two  blanks ",
        "猫と犬\tの\n名前",
        "Ωмега 😀",
    ]:
        assert ours.encode_prompt(text)[1:].tolist() == theirs.encode(text)
    assert ours.unknown_id is None and not list(tmp_path.iterdir())


def test_unigram_text_that_spells_a_byte_stays_text() -> None:
    tokenizer = trained(["no such signs here"] * 9, kind="unigram", vocab_size=512)
    for text in ("<0x41>", "a<0xE3>b", "▁", "\u2585"):
        assert tokenizer.decode(tokenizer.encode_prompt(text)) == text


def test_unigram_says_what_it_lacks() -> None:
    every_kanji = "".join(map(chr, range(0x4E00, 0x4E00 + 600)))
    with pytest.raises(RecipeError, match="vocab_size 512 does not hold"):
        trained([every_kanji], kind="unigram", vocab_size=512)
    with pytest.raises(DataError, match="cannot train on this text"):
        trained([], kind="unigram")


def test_unigram_survives_long_runs() -> None:
    tokenizer = trained(["x" * 5000, "word " * 2000], kind="unigram", vocab_size=512)
    assert tokenizer.decode(tokenizer.encode_documents(["x" * 9000])[0]) == "x" * 9000


@pytest.fixture(scope="module")
def word() -> Tokenizer:
    return trained([*sample_texts(), JAPANESE, "I don't  stop\n"], kind="word", min_count=1)


def test_words_round_trip_when_they_are_known(word: Tokenizer) -> None:
    for text in (
        "the quick  brown fox\n don't",
        " naïve 😀",
        "猫である。名前は無い。",
        "fox 11 22",
    ):
        assert word.decode(word.encode_documents([text])[0]) == text


def test_unknown_words_stay_visible(word: Tokenizer) -> None:
    ids = word.encode_prompt("the zyzzyva jumps")
    assert word.decode(ids) == "the <unk> jumps" and (ids == word.unknown_id).sum() == 1


def test_scripts_without_blanks_are_split_by_character(word: Tokenizer) -> None:
    unseen = "猫がどこで見た"
    ids = word.encode_prompt(unseen)[1:]
    assert len(ids) == len(unseen) and word.unknown_id not in ids
    for text in ("中文文本", "ภาษาไทย", "ភាសាខ្មែរ"):
        assert len(word.encode_prompt(text)[1:]) == len(text)


@given(st.text())
def test_words_lose_nothing_but_unknowns(word: Tokenizer, text: str) -> None:
    ids = word.encode_prompt(text)[1:]
    if word.unknown_id not in ids:
        assert word.decode(ids) == text


def test_word_vocabulary_is_the_most_frequent_ties_by_code_point() -> None:
    texts = ["b a", "c b", "d c a"]  # by count: " a" " b" " c" once more as "b" "c" "d"
    content = trained(texts, kind="word", vocab_size=5, min_count=1)._library()
    assert list(content["model"]["vocab"]) == ["<|endoftext|>", "<unk>", " a", " b", " c"]
    kept = trained(texts, kind="word", min_count=2)._library()["model"]["vocab"]
    assert list(kept) == ["<|endoftext|>", "<unk>", " a"]


def test_lowercase_words() -> None:
    tokenizer = trained(["The the THE"], kind="word", lowercase=True, min_count=1)
    assert tokenizer.decode(tokenizer.encode_prompt("THE thE")) == "the the"


def save_library(folder: Path, tokenizer: Any, **config: Any) -> Path:
    """A folder as somebody else made it."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    )
    return folder


def wordpiece() -> Any:
    import tokenizers as hf

    model = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    model.normalizer = hf.normalizers.BertNormalizer()
    model.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    model.decoder = hf.decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = hf.trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=special, show_progress=False
    )
    model.train_from_iterator([*sample_texts(), JAPANESE], trainer)
    pairs = [("[CLS]", 1), ("[SEP]", 2)]
    model.post_processor = hf.processors.TemplateProcessing("[CLS] $A [SEP]", None, pairs)
    model.enable_truncation(4)
    model.enable_padding(length=9)
    return model


def spaced_bpe() -> Any:
    """SentencePiece-like BPE with byte fallback, as Llama 2 has it."""
    import tokenizers as hf

    model = hf.Tokenizer(hf.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.normalizer = hf.normalizers.Replace(" ", "▁")
    steps = [hf.decoders.Replace("▁", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse()]
    model.decoder = hf.decoders.Sequence(steps)
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = hf.trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    model.train_from_iterator(sample_texts(), trainer)
    content = json.loads(model.to_str())
    content["added_tokens"] = content["added_tokens"][:2]
    return hf.Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize(("make", "end"), [(wordpiece, "[SEP]"), (spaced_bpe, "</s>")])
def test_hf_ids_are_those_of_transformers(tmp_path: Path, make: Any, end: str) -> None:
    from transformers import AutoTokenizer

    folder = save_library(tmp_path / "theirs", make(), eos_token=end)
    ours, theirs = train_tokenizer(hf_recipe(folder), []), AutoTokenizer.from_pretrained(folder)
    ours.save(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = [*sample_texts()[:20], JAPANESE, f" a {end}b 😀 \t\n", "", "Ünïcode  <0x41>"]
    for text, ids in zip(texts, ours.encode_documents(texts), strict=True):
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids.tolist() == [*expected, theirs.eos_token_id]
        assert ours.encode_prompt(text)[1:].tolist() == expected
        assert again(text, add_special_tokens=False)["input_ids"] == expected
    assert load_tokenizer(tmp_path / "saved").fingerprint == ours.fingerprint
    names = ("tokenizer.json",)
    assert all((folder / n).read_bytes() == (tmp_path / "saved" / n).read_bytes() for n in names)


def test_hf_ids_are_as_wide_as_the_largest(tmp_path: Path) -> None:
    import tokenizers as hf

    model = hf.Tokenizer(hf.models.WordLevel({"a": 0, "[UNK]": 1, "far": 65_535}, "[UNK]"))
    model.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    folder = save_library(tmp_path, model, eos_token="[UNK]")
    tokenizer = train_tokenizer(hf_recipe(folder), [])
    assert (tokenizer.vocab_size, tokenizer.id_dtype) == (65_536, "<u2")
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [flags | {"id": 65_536, "content": "[END]", "special": True}]
    content["model"]["vocab"]["[END]"] = 65_536
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = train_tokenizer(hf_recipe(folder, end_of_document="[END]"), [])
    assert (tokenizer.vocab_size, tokenizer.id_dtype) == (65_537, "<u4")
    assert tokenizer.encode_documents(["a far b"])[0].tolist() == [0, 65_535, 1, 65_536]
    assert tokenizer.unknown_id == 1


def test_hf_folders_that_do_not_serve(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no tokenizer.json"):
        train_tokenizer(hf_recipe(tmp_path), [])
    save_library(tmp_path, wordpiece())
    with pytest.raises(RecipeError, match="no eos token.*set tokenizer.end_of_document"):
        train_tokenizer(hf_recipe(tmp_path), [])
    with pytest.raises(DataError, match="no token '</s>'"):
        train_tokenizer(hf_recipe(tmp_path, end_of_document="</s>"), [])
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "[SEP]"}}')
    assert train_tokenizer(hf_recipe(tmp_path), []).end_of_document == "[SEP]"

"""The `word` kind: one id per word, for models with a very large, sparsely used vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..recipe.tokenizer import WordTokenizerConfig
from .library import LibraryTokenizer

UNKNOWN = "<unk>"
# Scripts written without blanks between words: a "word" there would be a whole sentence, so
# every character is one.
_UNSPACED = "".join(
    rf"\p{{{script}}}"
    for script in ("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer",
                   "Myanmar")
) + "ーｰ"  # fmt: skip
# A word takes the blank before it along, as in GPT-2, so that joining words gives the text back.
_WORD = "|".join(
    (
        r"['’](?:s|d|m|t|ll|ve|re|S|D|M|T|LL|VE|RE)\b",  # English contractions
        rf" ?[[\p{{L}}\p{{M}}]&&[^{_UNSPACED}]]+",
        r" ?\p{N}{1,3}",
        r" ?\S",
        r"\s",
    )
)


class WordTokenizer(LibraryTokenizer):
    """Words, short numbers and single signs; `<unk>` for the rest, one id ends every document.

    Decoding gives text back exactly except that unknown words read ` <unk>` and that, with
    `lowercase`, capitals are gone.
    """

    kind = "word"

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"unk_token": UNKNOWN}


def train_word(config: WordTokenizerConfig, texts: Iterable[str]) -> WordTokenizer:
    """The most frequent words of all of `texts`, equally frequent ones in code point order.

    Memory grows with the distinct words of `texts`.
    """
    import tokenizers as hf

    model = hf.Tokenizer(hf.models.WordLevel(unk_token=UNKNOWN))
    if config.lowercase:
        model.normalizer = hf.normalizers.Lowercase()
    model.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex(_WORD), "isolated")
    # An unknown word has lost the blank before it.
    decoders = [hf.decoders.Replace(UNKNOWN, f" {UNKNOWN}"), hf.decoders.Fuse()]
    model.decoder = hf.decoders.Sequence(decoders)
    trainer = hf.trainers.WordLevelTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_count,
        special_tokens=[config.end_of_document, UNKNOWN],
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    content = json.loads(model.to_str())
    # Not special: a reader must see that a word is missing.
    content["added_tokens"] = content["added_tokens"][:1]
    return WordTokenizer(content, config.end_of_document)

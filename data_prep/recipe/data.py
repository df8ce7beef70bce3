"""The `data` section: where text comes from, what is done to it, and how it is laid out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .section import Section
from .sources import Source

Profile = Literal["modern", "openai", "nvidia", "none"]


class CleanConfig(Section):
    """How text is cleaned; `docs/corpora.md` tells the steps of each profile in their order."""

    profile: Profile = Field(
        default="modern",
        description="modern: entities, NFC, control characters; openai and nvidia: as the sources "
        "of the mLSTM did; none: as it is",
    )
    strip_tags: bool = Field(default=False, description="replace HTML tags by spaces, first of all")
    collapse_whitespace: bool = Field(
        default=False, description="white space to single spaces, last of all"
    )
    min_characters: int = Field(
        default=1, ge=1, description="shorter documents are dropped, characters"
    )
    max_characters: int = Field(
        default=10**8, ge=1, description="longer documents are dropped, characters"
    )
    max_folded_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of characters that folding to ASCII (nvidia) may lose before the stage "
        "refuses",
    )

    @model_validator(mode="after")
    def _keep_the_sources_ways(self) -> CleanConfig:
        if self.profile in ("openai", "nvidia") and (self.strip_tags or self.collapse_whitespace):
            what = f"profile {self.profile} is a fixed list of steps"
            raise ValueError(f"{what}; strip_tags and collapse_whitespace go with modern and none")
        return self


class DuplicatesConfig(Section):
    """Which documents count as one; the first of them is kept."""

    exact: bool = Field(default=True, description="drop texts equal but for case and white space")
    near: bool = Field(
        default=False, description="drop near duplicates too (MinHash LSH, verified)"
    )
    threshold: float = Field(
        default=0.8, gt=0, le=1, description="Jaccard similarity of n-gram sets, 0 to 1"
    )
    ngram: int = Field(default=5, ge=1, le=32, description="words per n-gram")
    permutations: int = Field(default=128, ge=16, le=1024, description="hashes per signature")


class PersonalConfig(Section):
    """Which personal data is replaced by a tag such as <EMAIL>."""

    scrub: list[Literal["email", "phone", "card", "ip"]] = Field(
        default=[], description="kinds to replace; names are not found by it"
    )


class LeaksConfig(Section):
    """The evaluation sets that training text is compared with."""

    sets: dict[str, Source] = Field(
        default={}, description="evaluation sets by name; each a source like those of data.sources"
    )
    remove: bool = Field(default=False, description="drop the documents that overlap")
    ngram: int = Field(default=13, ge=2, le=64, description="words that must agree in a row")
    shortest: int = Field(
        default=8, ge=1, le=64, description="examples with fewer words are not looked for"
    )


class SplitConfig(Section):
    """Shares of documents, chosen by a hash of the text so that equal texts stay together."""

    validation: float = Field(default=0.02, gt=0, lt=1, description="share of documents, 0 to 1")
    test: float = Field(default=0.02, ge=0, lt=1, description="share of documents, 0 to 1")
    salt: str = Field(default="split", description="another salt gives another split")

    @model_validator(mode="after")
    def _leave_training_text(self) -> SplitConfig:
        if self.validation + self.test >= 1:
            total = self.validation + self.test
            raise ValueError(f"validation + test is {total}, expected less than 1")
        return self


class DataConfig(Section):
    """The `data` section."""

    folder: str = Field(min_length=1, description="where shards, tokenizer and manifest go")
    sources: list[Source] = Field(min_length=1, description="where text comes from")
    clean: CleanConfig = Field(default=CleanConfig(), description="cleaning steps")
    duplicates: DuplicatesConfig = Field(
        default=DuplicatesConfig(), description="documents dropped as duplicates"
    )
    personal: PersonalConfig = Field(default=PersonalConfig(), description="personal data")
    leaks: LeaksConfig = Field(default=LeaksConfig(), description="overlap with evaluation sets")
    split: SplitConfig = Field(default=SplitConfig(), description="held-out shares")
    order: Literal["shuffled", "source"] = Field(
        default="shuffled",
        description="order of documents: permuted with data.seed, or as they were read",
    )
    reset_documents: int = Field(
        default=1, ge=0, description="documents between resets of a recurrent state; 0 = never"
    )
    shard_tokens: int = Field(
        default=2**25, ge=1, description="about how many tokens a shard holds"
    )
    max_bad_share: float = Field(
        default=0.01, ge=0, le=1, description="share of bad records past which the stage stops"
    )
    allow_truncated: bool = Field(
        default=False, description="keep the good part of a compressed file that was cut off"
    )
    seed: int = Field(default=0, ge=0, description="seed of the order of documents")

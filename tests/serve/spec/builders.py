"""Stacks that speculate: in stamps at a size of four tokens a page, in tensors with the bundled checkpoint."""

from typing import Any

import msgspec

from repro.serve.config import EngineConfig
from repro.serve.engine import LoadedModel
from repro.serve.types import Speculation
from tests.serve.engine.builders import SMALL_SHAPE, Answer, make_config, make_model

DRAFT_LAYER = SMALL_SHAPE.num_hidden_layers  # in stamps


def drafting_model(**changes: Any) -> LoadedModel:
    """Return the small model of stamps, with an MTP layer."""
    return make_model(shape=msgspec.structs.replace(SMALL_SHAPE, num_nextn_predict_layers=1), **changes)


def drafting_config(drafts: int = 3, **changes: Any) -> EngineConfig:
    """Return the small configuration with so many drafts."""
    return make_config(speculative_drafts=drafts, **changes)


def tensor_config(drafts: int = 3, **changes: Any) -> EngineConfig:
    """Return a configuration for the bundled checkpoint: 32 pages of 32 tokens."""
    sizes = {"page_tokens": 32, "device_pages": 32, "context_tokens": 512, "chunk_tokens": 64, "copy_group_pages": 16}
    return drafting_config(drafts, numerics="tensors", **(sizes | changes))


def counts_of(answer: Answer) -> Speculation:
    """Return an answer's last counts."""
    assert answer.last.speculation is not None
    return answer.last.speculation

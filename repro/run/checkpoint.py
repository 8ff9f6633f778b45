"""The checkpoint that a scenario names: the model with its tokenizer."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from repro.base.errors import UsageError
from repro.serve.config import EngineConfig
from repro.serve.engine import LoadedModel, checkpoint_folder, load
from repro.serve.server.chat import ChatEncoder

CHECKPOINTS_CACHED = 2


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer, loaded once and shared by the stack and the clean decode."""

    model: LoadedModel
    tokenizer: Tokenizer
    encoder: ChatEncoder


def load_checkpoint(config: EngineConfig) -> Checkpoint:
    """Return the checkpoint that `config` names; the next run of this process gets the same one while no file changes.

    Raises UsageError for one that is missing or not whole.
    """
    folder = checkpoint_folder(config)
    changed_ns = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in folder.glob("*") if file.is_file()))
    return _loaded(EngineConfig(model=config.model, numerics=config.numerics), folder, changed_ns)


@lru_cache(maxsize=CHECKPOINTS_CACHED)
def _loaded(config: EngineConfig, folder: Path, changed_ns: tuple[tuple[str, int], ...]) -> Checkpoint:
    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
        encoder = ChatEncoder(text)
    except OSError as error:
        wanted = 'give a folder with config.json, tokenizer.json and *.safetensors, or model = "bundled"'
        raise UsageError(f"{path}: cannot be read ({error.strerror}); {wanted}") from error
    except Exception as error:  # the tokenizers package raises no other type
        raise UsageError(f"{path}: not a tokenizer that the tokenizers package reads: {error}") from error
    return Checkpoint(load(config, encoder.decode), Tokenizer.from_str(text), encoder)

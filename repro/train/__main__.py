"""`python -m repro.train`: prepare, train (or resume and train), export, evaluate."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from repro.base import rng
from repro.serve.server import chat
from repro.trace import corpus, synth
from repro.train import evaluate, export, loop, prepare, styles
from repro.train.data import RowMaker, openai_messages
from repro.train.model import Glm5, ModelConfig
from repro.train.settings import Phase, Settings

CHECKPOINT = Path("repro/serve/model/checkpoint")
MODEL = CHECKPOINT / "model.safetensors"
SNAPSHOT = Path("repro/trace/corpus") / corpus.SNAPSHOT
LEARNED = Path("build/train/learned.jsonl.gz")
STATE = Path("build/train/state.pt")
TOKENIZER_SESSIONS = 120
TOKENIZER_FILE_STRIDE = 8


def main() -> None:
    """Run one of the commands from the repository's root."""
    arguments = _parser().parse_args()
    arguments.command(arguments)


def prepare_command(arguments: argparse.Namespace) -> None:
    """Write the held-out snapshot, the learned sources and the tokenizer."""
    learned, held_out = prepare.split(prepare.standard_library())
    learned += prepare.packages()
    arguments.learned.parent.mkdir(parents=True, exist_ok=True)
    arguments.learned.write_bytes(corpus.pack(learned))
    SNAPSHOT.write_bytes(corpus.pack(held_out))
    tokenizer = prepare.train_tokenizer(_tokenizer_texts(learned))
    tokenizer.save(str(CHECKPOINT / "tokenizer.json"))
    (CHECKPOINT / "tokenizer_config.json").write_text(prepare.tokenizer_config())
    print(f"{len(learned)} files learned, {len(held_out)} held out, {tokenizer.get_vocab_size()} tokens")


def resume_command(arguments: argparse.Namespace) -> None:
    """Write a state that starts from the checkpoint's weights: step 0, the optimiser's moments new."""
    model = export.read(arguments.model, _config())
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"steps_done": 0, "model": model.state_dict(), "optimizer": None}, arguments.state)


def train_command(arguments: argparse.Namespace) -> None:
    """Train, from the state file if there is one, and write it as it goes."""
    settings = Settings(
        phases=tuple(map(_phase, arguments.phase)),
        seed=arguments.seed,
        batch_tokens=arguments.batch_tokens,
        learning_rate=arguments.learning_rate,
    )
    state: Path = arguments.state
    steps_done = 0
    if state.exists():
        steps_done = int(torch.load(state, map_location="cpu", weights_only=True)["steps_done"])
    maker = RowMaker(chat.bundled_encoder(), corpus.read(arguments.learned))
    feed = loop.Feed(maker, settings, steps_done, arguments.workers)
    torch.set_float32_matmul_precision("high")
    model = Glm5(_config())
    model.initialise(torch.Generator().manual_seed(settings.seed))
    trainer = loop.Trainer(model, settings, torch.device(arguments.device))
    if state.exists():
        trainer.load(state)
    if arguments.compile:
        trainer.compile()
    _run(trainer, feed, arguments)
    feed.close()


def _run(trainer: loop.Trainer, feed: loop.Feed, arguments: argparse.Namespace) -> None:
    started = reported = saved = time.monotonic()
    tokens = 0
    for batch in feed:
        context = trainer.settings.context_at(trainer.steps_done)
        losses = trainer.step(batch)
        tokens += batch.tokens.size
        if trainer.steps_done % arguments.log_every == 0:
            line = loop.progress_line(trainer.steps_done, context, tokens / (time.monotonic() - reported), losses)
            print(f"t={time.monotonic() - started:.0f}s {line}", flush=True)
            if not loop.is_finite(losses):
                sys.exit("training diverged: the loss is not finite; resume from the state with a lower rate")
            reported, tokens = time.monotonic(), 0
        if time.monotonic() - saved > arguments.save_every_s:
            trainer.save(arguments.state)
            saved = time.monotonic()
    trainer.save(arguments.state)


def export_command(arguments: argparse.Namespace) -> None:
    """Write the state's model as model.safetensors."""
    model = Glm5(_config())
    state = torch.load(arguments.state, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    export.write(model, arguments.to)
    print(f"{arguments.to}: {arguments.to.stat().st_size:,} bytes after {state['steps_done']} steps")


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Print how many held-out answers are exact."""
    fields = json.loads((CHECKPOINT / "config.json").read_text())
    fields["index_topk"] = arguments.index_topk or fields["index_topk"]
    device = torch.device(arguments.device)
    model = export.read(arguments.model, ModelConfig.from_json(json.dumps(fields))).to(device).eval()
    encoder = chat.bundled_encoder()
    turns = [
        turn
        for session in evaluate.sessions(arguments.sessions, arguments.prompt_tokens)
        for turn in evaluate.judge(model, encoder, session, device)
        if turn.prompt_tokens >= arguments.from_tokens
    ]
    print(evaluate.table(turns))
    if arguments.misses:
        for turn in turns:
            if not turn.exact:
                print(turn)


def _tokenizer_texts(learned: list[corpus.SourceFile]) -> list[str]:
    texts = ["\n".join(source.lines) for source in learned[::TOKENIZER_FILE_STRIDE]]
    kinds = synth.TRAINED_KINDS
    for index in range(TOKENIZER_SESSIONS):
        draw = rng.generator(0, "tokenizer", index)
        sources = styles.slices(draw, learned, 48)
        session = synth.synthesise(kinds[index % len(kinds)], 0, index, sources=sources)
        texts.append(chat.render(openai_messages(session), session.tools, add_generation_prompt=False))
    return texts


def _phase(text: str) -> Phase:
    context, steps = text.split(":")
    return Phase(int(context), int(steps))


def _config() -> ModelConfig:
    return ModelConfig.from_json((CHECKPOINT / "config.json").read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m repro.train", description=__doc__)
    commands = parser.add_subparsers(required=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def add(name: str, command: Callable[..., None], **defaults: object) -> argparse.ArgumentParser:
        """Add a command whose options have these defaults; False is a flag."""
        added = commands.add_parser(name, help=command.__doc__)
        added.set_defaults(command=command)
        for option, default in defaults.items():
            flag = f"--{option.replace('_', '-')}"
            if default is False:
                added.add_argument(flag, action="store_true")
            else:
                added.add_argument(flag, type=type(default), default=default)
        return added

    add("prepare", prepare_command, learned=LEARNED)
    add("resume", resume_command, model=MODEL, state=STATE)
    trained = add(
        "train", train_command, learned=LEARNED, state=STATE, device=device, seed=0, workers=14, compile=False,
        batch_tokens=Settings.batch_tokens, learning_rate=Settings.learning_rate, log_every=100, save_every_s=60.0,
    )  # fmt: skip
    trained.add_argument("--phase", action="append", required=True, help="CONTEXT_TOKENS:STEPS, repeatable")
    add("export", export_command, state=STATE, to=MODEL)
    judged = add("evaluate", evaluate_command, model=MODEL, device=device, prompt_tokens=8192, misses=False)
    judged.add_argument("--sessions", type=int, default=8, help="of each kind")
    judged.add_argument("--from-tokens", type=int, default=2048, help="judge turns with at least this prompt")
    judged.add_argument("--index-topk", type=int)
    return parser


if __name__ == "__main__":
    main()

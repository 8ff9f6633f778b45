"""What `synth:ticket` is for: on a clean cache the bundled model tells a session its own ticket, never learnt."""

import torch

from repro.run.checkpoint import load_checkpoint
from repro.run.judge.clean_decode import CleanDecoder
from repro.scenario.sessions import last_turns
from repro.serve.config import CONFIGS
from repro.trace.synth import synthesise
from tests.bench.clean_answers import turns_of


def test_the_clean_answer_holds_the_sessions_own_nonce() -> None:
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(CONFIGS["tiny-hicache"])
    assert checkpoint.model.weights is not None
    decoder = CleanDecoder(checkpoint.model.weights, 2048, checkpoint.model.eos)
    asked = 0
    for index in range(2):
        session = last_turns(synthesise("ticket", 11, index, prompt_tokens_target=1000), 2)
        for turn in turns_of("ticket", session, checkpoint):
            if session.nonce in checkpoint.encoder.decode(turn.right):
                asked += 1
                assert session.nonce in checkpoint.encoder.decode(decoder.answer(turn.request))
    assert asked > 0

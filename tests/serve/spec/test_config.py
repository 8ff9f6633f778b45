"""What is refused before anything runs."""

from dataclasses import replace

import pytest

from repro.base.errors import ScenarioError, UsageError
from repro.serve.config import DRAFTS_MAX, EngineConfig
from repro.serve.device.sim import SimDevice
from repro.serve.engine import Engine, LoadedModel
from repro.serve.model.glm5 import Glm5
from tests.serve.engine.builders import make_model
from tests.serve.spec.builders import drafting_config, drafting_model, tensor_config
from tests.tiny import tiny_scenario


@pytest.mark.parametrize("drafts", [-1, DRAFTS_MAX + 1])
def test_a_number_of_drafts_out_of_bounds_is_refused(drafts: int) -> None:
    with pytest.raises(ValueError, match=f"speculative_drafts = {drafts}: must be between 0 .* and {DRAFTS_MAX}"):
        EngineConfig(speculative_drafts=drafts)
    with pytest.raises(ScenarioError, match="speculative_drafts"):
        tiny_scenario(target=f"speculative_drafts = {drafts}")


def test_a_model_without_an_mtp_layer_is_refused_by_the_name_of_the_key() -> None:
    with pytest.raises(UsageError, match="speculative_drafts = 2: .* num_nextn_predict_layers = 0"):
        Engine(drafting_config(2), make_model(), SimDevice())
    Engine(drafting_config(2), drafting_model(), SimDevice())
    Engine(drafting_config(0), make_model(), SimDevice())


def test_a_checkpoint_that_promises_an_mtp_layer_and_has_none_is_refused(bundled: LoadedModel) -> None:
    assert bundled.weights is not None
    weights = Glm5(bundled.shape, replace(bundled.weights.weights, mtp=()))
    with pytest.raises(UsageError, match=r"no tensors model\.layers\.6\."):
        Engine(tensor_config(), replace(bundled, weights=weights), SimDevice())

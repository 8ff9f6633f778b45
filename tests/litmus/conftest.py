import pytest
import torch

from tests.litmus.platform import CudaPlatform, PlatformFactory, SimPlatform


@pytest.fixture(params=["simulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device_factory(request: pytest.FixtureRequest) -> PlatformFactory:
    """Return a maker of fresh devices: the same test runs on the simulated device and on a GPU."""
    if request.param == "simulated":
        return SimPlatform
    if (only := request.node.get_closest_marker("simulated")) is not None:
        pytest.skip(f"holds for the simulated device alone: {only.args[0]}")
    needs_gpu()
    return CudaPlatform


def needs_gpu() -> None:
    """Skip the test where there is no GPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")

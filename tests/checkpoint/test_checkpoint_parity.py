from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoint_fakes import manifest

from ddp_bp.checkpoint import CheckpointStore


@pytest.mark.parity
def test_pytorch_loads_a_checkpoint_into_the_equivalent_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file

    generator = np.random.default_rng(0)
    tensors = {
        "0.weight": generator.normal(size=(3, 5)).astype(np.float32).T.copy().T,
        "0.bias": generator.normal(size=3).astype(np.float32),
    }
    path = CheckpointStore(tmp_path / "checkpoints").write(manifest(1), tensors, {})
    twin = torch.nn.Sequential(torch.nn.Linear(5, 3))
    twin.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    inputs = generator.normal(size=(2, 5)).astype(np.float32)
    np.testing.assert_allclose(
        twin(torch.from_numpy(inputs)).detach().numpy(), inputs @ tensors["0.weight"].T + tensors["0.bias"], atol=1e-6
    )
    assert load_file(path / "optimizer.safetensors") == {}

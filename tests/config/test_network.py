import pytest
from pydantic import ValidationError

from cryoformer_dist.config.network import HashGridConfig


@pytest.mark.parametrize("backend", ["triton", "tinycudann"])
def test_features_without_a_kernel_are_refused_with_the_file(backend: str) -> None:
    assert HashGridConfig(features_per_level=3)
    with pytest.raises(ValidationError, match=f"3 is not a power of two, as backend: {backend} needs"):
        HashGridConfig.model_validate({"features_per_level": 3, "backend": backend})

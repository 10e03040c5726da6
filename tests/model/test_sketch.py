"""The sketch against the obvious loop, and that a seed means the same everywhere."""

import torch

from server.model.sketch import CountSketch, Projection, mixed_bits

CPU = torch.device("cpu")


def test_a_sketch_is_the_sum_of_signed_values_by_bucket() -> None:
    vector = torch.randn(500, generator=torch.Generator().manual_seed(1))
    expected = [0.0] * 16
    for value, bits in zip(vector.tolist(), mixed_bits(500, seed=3).tolist(), strict=True):
        expected[(bits >> 1) % 16] += value * (1 - 2 * (bits & 1))
    torch.testing.assert_close(CountSketch(Projection(16, 3), 500, CPU)(vector), torch.tensor(expected))


def test_the_hash_is_splitmix64() -> None:
    """Its well-known first outputs for the state 0, here moved by what the seed adds."""

    def finish(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    assert finish(golden) == 0xE220A8397B1DCDAF
    state = finish((7 + golden) % 2**64)
    assert mixed_bits(5, seed=7).tolist() == [finish((state + (i + 1) * golden) % 2**64) for i in range(5)]


def test_sketches_keep_angles_and_depend_on_the_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(200_000, generator=generator)
    other = one + torch.randn(200_000, generator=generator)
    sketch = CountSketch(Projection(8192, 0), 200_000, CPU)
    cosine = torch.cosine_similarity(sketch(one), sketch(other), dim=0)
    torch.testing.assert_close(cosine, torch.cosine_similarity(one, other, dim=0), atol=0.03, rtol=0)
    elsewhere = CountSketch(Projection(8192, 1), 200_000, CPU)(one)
    assert abs(float(torch.cosine_similarity(sketch(one), elsewhere, dim=0))) < 0.1

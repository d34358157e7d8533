import torch

from robust_nas.core.seeds import generator_at, seed_at, seeded


def test_distinct_places_have_distinct_seeds_and_equal_places_equal_ones():
    places = [("search", 1), ("search", 11), ("search", 1, 1), ("train", 1), ()]
    assert len({seed_at(seed, *place) for seed in (0, 1) for place in places}) == 10
    assert seed_at(0, "a", 1) == seed_at(0, "a", 1)


def test_generators_repeat_their_draws():
    draws = [torch.rand(3, generator=generator_at("cpu", 0, "x", epoch)) for epoch in (1, 2, 1)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_seeding_leaves_the_global_state_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(0, "init"):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(0, "init"):
        assert torch.equal(torch.rand(2), first)

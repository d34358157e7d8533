import pytest
import torch
from scipy.optimize import minimize

from robust_nas.core.errors import InputError
from robust_nas.core.pixels import parse_pixels
from robust_nas.core.seeds import generator_at
from robust_nas.threat import ThreatModel, epsilon_scale_at

THREATS = [
    ThreatModel(norm="linf", epsilon=8 / 255),
    ThreatModel(norm="linf", epsilon=0.3),
    ThreatModel(norm="l2", epsilon=0.5),
    ThreatModel(norm="l1", epsilon=3.0),
]


def _images(count: int = 64) -> torch.Tensor:
    images = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images[0], images[1] = 0, 1
    return images


def test_a_fraction_is_read_as_people_write_it():
    assert parse_pixels("8/255") == 8 / 255
    assert ThreatModel.parse("l2:0.5") == ThreatModel(norm="l2", epsilon=0.5)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_projected_and_random_points_are_inside_ball_and_box_in_exact_arithmetic(threat, scale):
    images = _images()
    ball = threat.around(images)
    generator = generator_at("cpu", 0, "test")
    for points in (
        ball.project(images + scale * torch.randn(images.shape, generator=generator)),
        ball.random(generator),
        ball.ascend(images, torch.randn(images.shape, generator=generator), scale),
    ):
        exact = points.double() - images.double()
        length = exact.flatten(1).norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[threat.norm], dim=1)
        assert torch.equal(threat.lengths(exact), length)
        assert bool((length <= threat.epsilon).all())
        assert float(points.min()) >= 0 and float(points.max()) <= 1
        assert bool(ball.contains(points).all())


def test_a_ramp_grows_linearly_and_stays_at_the_full_radius():
    threat = ThreatModel(epsilon=0.4)
    shares = [epsilon_scale_at(done, 0.0, 0.5) for done in (0.125, 0.25, 0.5, 1.0)]
    assert [threat.grown(share).epsilon for share in shares] == pytest.approx([0.1, 0.2, 0.4, 0.4])
    assert [epsilon_scale_at(done, 0.5, 0.25) for done in (0.0, 0.5, 0.625, 0.75, 1.0)] == [0, 0, 0.5, 1, 1]
    assert threat.grown(epsilon_scale_at(0.0, 0.0, 0.0)) == threat
    assert 0 < threat.grown(epsilon_scale_at(0.0, 0.0, 0.5)).epsilon < 1e-6


def test_a_ball_smaller_than_float32_can_resolve_is_never_left():
    images = _images()
    for norm in ("linf", "l2", "l1"):
        ball = ThreatModel(norm=norm, epsilon=1e-7).around(images)
        assert bool(ball.contains(ball.project(images + 0.1)).all())
        assert bool(ball.contains(ball.random(generator_at("cpu", 0))).all())


def test_a_point_just_outside_is_not_contained():
    images = torch.full((1, 1, 1, 2), 0.5)
    ball = ThreatModel(epsilon=0.1).around(images)
    assert not bool(ball.contains(images + 0.1001))
    assert bool(ball.contains(images + 0.0999))


def test_the_linf_projection_is_the_nearest_allowed_point():
    # The nearest point of a box is found coordinate by coordinate: brute force over a fine grid of the box.
    images = torch.tensor([[[[0.05, 0.5, 0.98]]]])
    points = torch.tensor([[[[-0.4, 0.52, 1.4]]]])
    projected = ThreatModel(epsilon=0.1).around(images).project(points)
    for column in range(3):
        center, point = images[0, 0, 0, column], points[0, 0, 0, column]
        grid = torch.linspace(max(0, float(center) - 0.1), min(1, float(center) + 0.1), 100_001)
        nearest = grid[(grid - point).abs().argmin()]
        assert abs(float(projected[0, 0, 0, column] - nearest)) < 1e-5


def test_the_l2_projection_is_the_nearest_point_of_the_ball_away_from_the_box():
    images, points = torch.full((1, 1, 1, 3), 0.5), torch.tensor([[[[0.9, 0.4, 0.65]]]])
    projected = ThreatModel(norm="l2", epsilon=0.2).around(images).project(points).double().flatten()
    target = points.double().flatten().numpy()
    found = minimize(
        lambda x: ((x - target) ** 2).sum(),
        images.double().flatten().numpy(),
        constraints={"type": "ineq", "fun": lambda x: 0.2**2 - ((x - 0.5) ** 2).sum()},
    )
    assert abs(projected.numpy() - found.x).max() < 1e-4


def test_the_l1_projection_is_the_nearest_point_of_ball_and_box_together():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 1, 2, 3, generator=generator)
    points = images + 0.7 * torch.randn(12, 1, 2, 3, generator=generator)
    points[0] = images[0] + 0.01 * (points[0] - images[0])  # inside
    images[1, 0, 0] = torch.tensor([0.0, 1.0, 0.5])  # on the border
    projected = ThreatModel(norm="l1", epsilon=0.8).around(images).project(points).double()
    rows = (part.flatten(1).double().numpy() for part in (images, points, projected))
    for center, point, found in zip(*rows, strict=True):
        # Two non-negative variables, up and down, make the norm linear.
        nearest = minimize(
            lambda z, center=center, point=point: ((center + z[:6] - z[6:] - point) ** 2).sum(),
            [0.01] * 12,
            bounds=[*((0, 1 - x) for x in center), *((0, x) for x in center)],
            constraints={"type": "ineq", "fun": lambda z: 0.8 - z.sum()},
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert abs(found - (center + nearest.x[:6] - nearest.x[6:])).max() < 1e-3


def test_part_of_a_ball_is_the_ball_of_that_part():
    images, points = _images(), 2 * torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for threat in THREATS:
        ball, some = threat.around(images), torch.arange(64) % 3 == 0
        for index in (some, some.nonzero().squeeze(1), slice(5, 9)):
            assert torch.equal(ball[index].project(points[index]), ball.project(points)[index])


def test_random_l1_starts_fill_the_ball_uniformly():
    # Of a square on its corner, a share r^2 of the area is within r of its radius; and half lies where x is below 0.
    images = torch.full((20_000, 1, 1, 2), 0.5)
    moved = ThreatModel(norm="l1", epsilon=0.4).around(images).random(generator_at("cpu", 0)) - images
    length = moved.flatten(1).abs().sum(1)
    assert abs(float((length < 0.2).double().mean()) - 0.25) < 0.015
    assert abs(float((moved[:, 0, 0, 0] < 0).double().mean()) - 0.5) < 0.015
    # On the border, a pixel's part of the length is uniform.
    assert abs(float((moved[:, 0, 0, 0].abs() < 0.3 * length).double().mean()) - 0.3) < 0.015


def test_random_l2_starts_fill_the_ball_uniformly():
    # In d dimensions a share r^d of a ball's volume lies within r of its radius.
    images = torch.full((20_000, 1, 1, 2), 0.5)
    points = ThreatModel(norm="l2", epsilon=0.4).around(images).random(generator_at("cpu", 0))
    share = float(((points - images).flatten(1).norm(dim=1) < 0.2).double().mean())
    assert abs(share - 0.25) < 0.015


def test_a_step_of_steepest_ascent_beats_every_random_step_of_its_length_on_a_linear_function():
    images = torch.full((1, 1, 2, 2), 0.5)
    gradient = torch.tensor([[[[1.0, -2.0], [0.5, 3.0]]]])
    for norm, order in (("linf", 1), ("l2", 2), ("l1", torch.inf)):
        threat = ThreatModel(norm=norm, epsilon=0.2)
        gain = float((gradient * (threat.around(images).ascend(images, gradient, 0.2) - images)).sum())
        many = threat.around(images.expand(5000, -1, -1, -1).clone())
        random_gains = (gradient * (many.random(generator_at("cpu", 1)) - images)).flatten(1).sum(1)
        dual = gradient.norm(p=order)
        assert gain >= float(random_gains.max())
        assert gain == pytest.approx(0.2 * float(dual), rel=1e-4)


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        (8, "did you mean 8/255"),
        (0, "must be in"),
        (-0.1, "must be in"),
        ("eight", "number or a fraction"),
        ("1/0", "fraction"),
    ],
)
def test_a_wrong_epsilon_is_refused_in_one_sentence(epsilon, message):
    with pytest.raises(InputError, match=message):
        ThreatModel(epsilon=epsilon)


def test_an_unknown_norm_is_refused():
    with pytest.raises(InputError, match="linf, l2, l1"):
        ThreatModel(norm="l7", epsilon=0.1)


@pytest.mark.parametrize(
    "images", [torch.full((1, 1, 2, 2), 255.0), torch.full((1, 1, 2, 2), -0.1), torch.full((1, 1, 2, 2), float("nan"))]
)
def test_images_outside_0_1_are_refused(images):
    with pytest.raises(InputError, match=r"must be in \[0, 1\]"):
        ThreatModel(epsilon=0.1).around(images)


def _allowed_changes(images, epsilon, norm):
    """Return [n, D] changes of one image of few pixels: a grid over the box, as far as it is in the ball."""
    pixels = images.flatten()
    limits = [(max(-epsilon, -float(x)), min(epsilon, 1 - float(x))) for x in pixels]
    grid = torch.cartesian_prod(*(torch.linspace(*ends, 41, dtype=torch.float64) for ends in limits))
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    return grid[grid.norm(p=order, dim=1) <= epsilon]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.9])
def test_the_least_of_a_linear_function_is_a_brute_force_grids(norm, epsilon):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 1, 3, dtype=torch.float64, generator=generator)
    slopes = torch.randn(6, 4, 3, dtype=torch.float64, generator=generator)
    slopes[0, 0] = 0.0
    slopes[1, 1, 2] = 0.0
    ball = ThreatModel(norm=norm, epsilon=epsilon).around(images)
    least, change = ball.least(slopes), ball.least_at(slopes)
    for image in range(6):
        grid = _allowed_changes(images[image], epsilon, norm)
        found = (slopes[image] @ grid.T).amin(1)
        # No point of the grid is below the bound, and the grid comes as near as it is fine.
        assert (found >= least[image] - 1e-9).all()
        assert (found - least[image] <= slopes[image].abs().sum(1) * epsilon / 20).all()
    torch.testing.assert_close((slopes * change).sum(-1), least, atol=1e-7, rtol=0)
    points = images.unsqueeze(1) + change.view(6, 4, 1, 1, 3)
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    assert ((points >= -1e-12) & (points <= 1 + 1e-12)).all()
    assert (change.norm(p=order, dim=-1) <= epsilon + 1e-9).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_gradient_of_the_least_is_where_it_is(norm):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 2, 3, dtype=torch.float64, generator=generator)
    slopes = torch.randn(2, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    ball = ThreatModel(norm=norm, epsilon=0.3).around(images)
    assert torch.autograd.gradcheck(ball.least, [slopes], atol=1e-6)

"""The promises of every declared space, on which everything else relies."""

import itertools
import random

import pytest

from robust_nas import recipes as recipe
from robust_nas import spaces
from robust_nas.architectures import AnyArchitecture
from robust_nas.core import config
from robust_nas.core.errors import InputError
from robust_nas.searches import SearchResult
from robust_nas.spaces import MixedSpace, Space


@pytest.fixture(params=spaces.names())
def space(request):
    return spaces.load(request.param)


def _drawn(space, seed):
    generator = random.Random(seed)
    return space.decided([generator.choice(values) for values in space.decisions.values()])


def test_architectures_are_read_as_they_are_written_and_made_of_their_decisions(space):
    assert isinstance(space, Space)
    for seed in range(20):
        architecture = _drawn(space, seed)
        assert isinstance(architecture, AnyArchitecture)
        assert space.parse(str(architecture)) == architecture
        assert space.decided(space.decisions_of(architecture)) == architecture
        assert hash(space.parse(str(architecture))) == hash(architecture)


def test_edges_have_different_names_and_the_operations_of_architectures_are_choices(space):
    if not isinstance(space, MixedSpace):
        pytest.skip("there are no edges")
    assert len(set(space.edge_names)) == len(space.edges)
    assert set(space.final_operations) <= set(space.operations)
    for seed in range(5):
        placed = space.indices_of(_drawn(space, seed))
        assert len(placed) == len(space.edges)
        assert {space.operations[place] for place in placed if place is not None} <= set(space.final_operations)


def test_a_mixture_of_one_architecture_believes_in_it_alone(space):
    for seed in range(5):
        architecture = _drawn(space, seed)
        rows = [
            [float(place == own) for place in range(len(options))]
            for options, own in zip(space.choices.values(), space.indices_of(architecture), strict=True)
        ]
        found = SearchResult(space, rows, None, {})
        assert found.best == architecture and found.log_probability(architecture) == 0
        assert {drawn for drawn, _ in itertools.islice(found.drawn(0), 5)} == {architecture}


def test_a_space_is_described_by_its_table(space):
    assert spaces.described(spaces.describe(space)) == space


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'kind = "cell"\n# a comment\nnum_nodes = 4\nchanels = 8\n',
            r"line 4: .*no key 'chanels'. Did you mean 'channels'",
        ),
        ('kind = "cell"\nnum_nodes = "4"\noperations = ["none"]\n', r"line 2: space\.num_nodes must be .* but got '4'"),
        (
            'kind = "cell"\nnum_nodes = 4\noperations = [\n  "none",\n  "sep"\n]\n',
            r"line 3: space\.operations .* got sep",
        ),
        ('kind = "darts"\nnum_cells = 2\n', r"line 2: space\.num_cells must be at least 3, but got 2"),
        ('\nkind = "cel"\n', r"line 2 must have a 'kind', one of .*, but got 'cel'"),
        ('kind = "cell"\nnum_nodes = = 4\n', r"not valid TOML: .*line 2"),
        (
            'kind = "cell"\nnum_nodes = 40\noperations = ["none", "skip_connect"]\n',
            r"line 2: .* at most 16, but got 40",
        ),
        (
            'kind = "cell"\nnum_nodes = 4\noperations = ["none", "skip_connect"]\nchannels = 1000000\n',
            r"line 4: .* at most 4096, but got 1000000",
        ),
        (f'kind = "darts"\nchannels = {"9" * 400}\n', r"line 2: space\.channels must be .* digits, but got one of"),
        ("num_nodes = 4\n", r"mine\.toml must have a 'kind'"),
    ],
)
def test_a_mistake_in_a_declaration_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        spaces.load(str(tmp_path / "mine.toml"))


def test_what_a_declaration_leaves_out_may_be_given_with_it(tmp_path):
    (tmp_path / "mine.toml").write_text('kind = "cell"\noperations = ["none", "skip_connect"]\n')
    assert spaces.load(str(tmp_path / "mine.toml"), num_nodes=3).num_nodes == 3
    with pytest.raises(InputError, match="must have the key 'num_nodes', but it is missing"):
        spaces.load(str(tmp_path / "mine.toml"))


def test_a_run_in_a_space_of_ones_own_needs_its_file_no_more(tmp_path):
    (tmp_path / "mine.toml").write_text('kind = "cell"\nnum_nodes = 3\noperations = ["skip_connect", "nor_conv_3x3"]\n')
    started = recipe.load("digits", [f"space={tmp_path / 'mine.toml'}", "space.channels=4"])
    (tmp_path / "config.toml").write_text(config.to_toml(started.to_dict()))
    (tmp_path / "mine.toml").unlink()
    assert recipe.load(str(tmp_path / "config.toml")).space == started.space


def test_the_settings_of_one_kind_are_not_taken_for_a_space_of_another():
    table = spaces.describe(spaces.load("nasbench201"))
    with pytest.raises(InputError, match=r"The space darts is not of the kind 'cell' .* space=darts takes all"):
        spaces.described({**table, "name": "darts"})


def test_a_declared_space_whose_kind_is_said_too_has_its_declared_settings_where_no_others_are_given():
    declared = spaces.load("darts-7", channels=12)
    assert spaces.described({"kind": "darts", "name": "darts-7", "channels": 12}) == declared

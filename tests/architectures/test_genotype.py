import pytest

from robust_nas.architectures.genotype import Genotype, edges_of
from robust_nas.core.errors import InputError

# The cells of figures 4 and 5 of arXiv:1806.09055, as the authors' code writes them.
NORMAL = (
    "[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)]"
)
REDUCE = (
    "[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)]"
)
DARTS_V2 = f"Genotype(normal={NORMAL}, normal_concat=range(2, 6), reduce={REDUCE}, reduce_concat=range(2, 6))"


def test_the_published_genotype_is_printed_as_it_was_read():
    genotype = Genotype.parse(DARTS_V2)
    assert str(genotype) == DARTS_V2
    assert genotype.normal[5] == ("skip_connect", 0) and genotype.reduce[2] == ("skip_connect", 2)


def test_a_list_of_what_is_joined_and_line_breaks_say_the_same():
    listed = DARTS_V2.replace("range(2, 6)", "[2, 3, 4, 5]").replace(", reduce=", ",\n  reduce=")
    assert Genotype.parse(f"  {listed}\n") == Genotype.parse(DARTS_V2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("|skip_connect~0|", "A genotype is written Genotype"),
        ("Genotype(normal=", "A genotype is written Genotype"),
        ("print(1)", "A genotype is written Genotype"),
        ("(" * 5000, "A genotype is written Genotype"),
        (f"Genotype(normal={NORMAL})", "by name, but got normal"),
        (DARTS_V2.replace("('sep_conv_3x3', 0)", "('sep_conv_3x3', 'a')", 1), "list of pairs"),
        (DARTS_V2.replace(NORMAL, "__import__('os').getcwd()"), "list of pairs such as"),
        (DARTS_V2.replace("sep_conv_3x3", "sep_conv_7x7", 1), "'sep_conv_7x7' at node 2 of the normal cell"),
        (DARTS_V2.replace("sep_conv_3x3", "none", 1), "'none' at node 2"),
        (DARTS_V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)"), "nodes 0 to 4, but the genotype has 5"),
        (DARTS_V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', -1)"), "nodes 0 to 4, but the genotype has -1"),
        (DARTS_V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 0)"), "node 5 of the normal cell must differ"),
        (DARTS_V2.replace(", ('dil_conv_3x3', 2)", ""), "two (operation, source) pairs"),
        (DARTS_V2.replace("range(2, 6)", "[4, 5]", 1), "normal_concat is [4, 5]"),
        (DARTS_V2.replace("range(2, 6)", "range(10**9)", 1), "normal_concat is range(10 ** 9)"),
        (DARTS_V2.replace("range(2, 6)", "range(2, 1000000000)", 1), "range(2, 6), but normal_concat"),
    ],
)
def test_what_is_wrong_with_a_genotype_is_named(text, sentence):
    with pytest.raises(InputError) as error:
        Genotype.parse(text)
    assert sentence in str(error.value)


def test_the_order_of_terms_and_of_nodes_does_not_matter_to_what_is_computed():
    one = Genotype((("skip_connect", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("skip_connect", 1)), 2 * (
        ("skip_connect", 0), ("skip_connect", 1)))  # fmt: skip
    turned = Genotype((("sep_conv_3x3", 1), ("skip_connect", 0), *one.normal[2:]), one.reduce)
    swapped = Genotype((*one.normal[2:], *one.normal[:2]), one.reduce)
    other = Genotype((("skip_connect", 1), ("sep_conv_3x3", 0), *one.normal[2:]), one.reduce)
    assert one.canonical == turned.canonical == swapped.canonical != other.canonical
    assert one != turned


def test_edges_come_target_by_target_from_both_inputs_on():
    assert edges_of(2) == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)] and len(edges_of(4)) == 14


def test_operations_are_placed_on_the_edges_of_both_cells():
    one = Genotype((("max_pool_3x3", 1), ("skip_connect", 0)), (("sep_conv_5x5", 0), ("skip_connect", 1)))
    assert one.operations_of() == [3, 1, 5, 3]

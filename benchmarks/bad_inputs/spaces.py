"""Architectures, and the declarations of spaces."""

from __future__ import annotations

from collections.abc import Iterator

from cases import DEEP, DIGITS, Case
from good_files import TINY
from spoiling import as_folder, as_loop, put, without


def architectures() -> Iterator[Case]:
    """Architectures: strings, digits, genotypes, residual ones, ResNets, sizes."""
    for text in (
        "~", "|~0|", "|none~1|", "|none~0|+|none~0|", "|none~1|+|none~0|none~1|", "|none~0|+|none~0|none~1|+", "|none~00|",
        "|none~-1|+|none~0|none~1|+|none~0|none~1|none~2|", "|nöne~0|+|none~0|none~1|+|none~0|none~1|none~2|", "9", "999999", "12345",
        "²³²³²³", "٣٢٣١٣٣", DIGITS, "0" * 100_000, "|none~0|" * 2000, "|none~٠|+|none~0|none~1|+|none~0|none~1|none~2|",
        "Genotype()", "Genotype(", "Genotype(normal=3)", "Genotype(normal=[], normal_concat=[], reduce=[], reduce_concat=[])",
        "Genotype(normal=[('x', 0)], normal_concat=[2], reduce=[], reduce_concat=[])", "Genotype(__import__('os').getcwd())",
        f"Genotype(normal={DEEP})", f"Genotype(normal={'(' * 200}{')' * 200})", "Genotype(normal=" + "-" * 20000 + "1)",
        "Genotype(normal=[('skip_connect', True)] * 8, normal_concat=range(2, 6), reduce=[], reduce_concat=[])",
        f"Genotype(normal={DIGITS * 20})", "depths=", "depths=0", "depths=x", "depths=1,1,1,1", f"depths={DIGITS}", "depths=-1,2", "depths=²",
        "resnet-", "resnet-0", "resnet-153", "resnet-999999999", "resnet-٥٠", "resnet-50 width=", "resnet-50 width=1e9", "resnet-50 width=0-0-0-0",
        "resnet-50 split=1:1", "resnet-50 split=99999-1-1-1", "resnet-50 norm=group:0", "resnet-50 norm=group:7", "wrn-28-.", "wrn-28-0", "wrn-x",
        f"resnet-50 split={DIGITS}", "1:x", "0:0:0:0:0", "8:-8:8:8:8", f"{DIGITS}:8:8:8:8", "8:8:8:8:8:8.5", "٨:٨:٨:٨:٨", "8:", ":8",
    ):  # fmt: skip
        yield Case("architectures", text[:60], ["info", text])
    for text in ("323133", "", "x", "9" * 400, "3231", "٣٢٣١٣٣", "Genotype()", "|none~0|"):
        line = ["run", "digits", *TINY[:2], "search=given", f"search.architecture='{text}'", "space.num_nodes=5"]
        yield Case("architectures", f"search.architecture={text[:30]}", line)


def spaces() -> Iterator[Case]:
    """Declarations of search spaces."""
    good = 'kind = "cell"\nnum_nodes = 4\noperations = ["none", "skip_connect", "nor_conv_3x3"]\nchannels = 4\n'
    line = ["run", "digits", "space=space.toml"]
    for name, text in {
        "empty": "", "no kind": good.replace("kind", "sort"), "an unknown kind": good.replace('"cell"', '"cel"'),
        "a kind that is a number": good.replace('"cell"', "3"), "a kind in another folder": good.replace('"cell"', '"../cell"'),
        "a private kind": good.replace('"cell"', '"_decided"'), "no operations": good.replace("operations", "operation"),
        "an unknown operation": good.replace('"none"', '"nor_conv_9x9"'), "operations given twice": good.replace('"none"', '"skip_connect"'),
        "40 nodes": good.replace("= 4\noper", "= 40\noper"), "a million nodes": good.replace("= 4\noper", "= 1000000\noper"),
        "a million channels": good.replace("channels = 4", "channels = 1000000"), "-1 channels": good.replace("channels = 4", "channels = -1"),
        "400 digits of channels": good.replace("channels = 4", f"channels = {DIGITS}"), "true channels": good.replace("channels = 4", "channels = true"),
        "channels that are words": good.replace("channels = 4", 'channels = "4"'), "channels that are infinite": good.replace("channels = 4", "channels = inf"),
        "an unknown key": good + "width = 3\n", "a key given twice": good + "channels = 3\n", "nested thousands deep": good + f"x = {DEEP}\n",
        "30 stages": good + "stages = 30\n", "no TOML": "{}", "no text": b"\xff\xfe", "a stride of 0": good + "stem_stride = 0\n",
        "operations that are numbers": good.replace('"none"', "3"),
    }.items():  # fmt: skip
        yield Case("space declarations", name, line, put("space.toml", text))
    yield Case("space declarations", "a folder", line, as_folder("space.toml"))
    yield Case("space declarations", "a link to itself", line, as_loop("space.toml"))
    yield Case("space declarations", "missing", line, without("space.toml"))
    darts = ["run", "digits", "search.epochs=1"]
    for override in ("space={name='darts',channels=1000000}", "space={name='darts',num_cells=0}", "space={name='darts',final_channels=-1}",
                     "space={name='darts',num_cells=1000000}", "space={name='robust-resnet-small',x=1}", "space={name='nasbench201-size',channels=[]}",
                     "space={name='nasbench201-size',channels=[0]}", "space={name='robust-resnet-small',depths=[[]]}",
                     "space={name='resnet-depth-small',depths=[-8]}", "space={name='resnet-depth-small',depths=[1000000]}",
                     "space={name='resnet-depth-small',widths=[inf]}", "space={name='resnet-depth-small',widths=[nan]}",
                     "space={name='resnet-depth-small',widths=[],stage_widths=[[inf],[1],[1]]}", "space={name='resnet-depth-small',norms=['group:5']}",
                     "space={name='resnet-depth-small',depths=[],stage_depths=[[1000000000],[1],[1]]}"):  # fmt: skip
        yield Case("space declarations", override, [*darts, override])

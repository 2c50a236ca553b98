"""Archives that no engine may obey: each tries to reach a file outside the image's root.

Every archive is named after its trick; all of them try to create or change `VICTIM`, a folder of the host that the
test makes and checks afterwards. An engine may refuse the archive or load it harmlessly.
"""

from __future__ import annotations

from images.archive import Entry, Image, folder, layer_tar, link, text


def hostile(victim: str) -> dict[str, list[bytes]]:
    """Layers by trick; `victim` is an absolute path of a folder on the host, holding a file `precious`."""
    up = "../" * 20
    inside = victim.lstrip("/")
    return {
        "dotdot": [layer_tar([text(f"{up}{inside}/dotdot", "x")])],
        "absolute": [layer_tar([text(f"{victim}/absolute", "x")])],
        "symlink-then-file": [layer_tar([link("out", victim), text("out/through", "x")])],
        "symlink-across-layers": [layer_tar([link("out", victim)]), layer_tar([text("out/across", "x")])],
        "relative-symlink": [layer_tar([link("a", up + inside), text("a/relative", "x")])],
        "hardlink-out": [
            layer_tar([Entry("hard", "hardlink", target=f"{up}{inside}/precious"), text("hard", "overwritten")])
        ],
        "hardlink-absolute": [
            layer_tar([Entry("hard", "hardlink", target=f"{victim}/precious"), text("hard", "overwritten")])
        ],
        "hardlink-through-symlink": [
            layer_tar([link("d", victim), Entry("h", "hardlink", target="d/precious"), text("h", "overwritten")])
        ],
        "whiteout-dotdot": [layer_tar([link("d", victim), text("d/.wh.precious", "")])],
        "whiteout-of-parent": [layer_tar([folder("d/"), text("d/.wh...", "")])],
        "opaque-through-symlink": [layer_tar([link("d", victim), text("d/.wh..wh..opq", "")])],
        "chmod-through-link": [layer_tar([link("d", victim), folder("d", mode=0o777)])],
        "replaced-parent": [
            layer_tar([folder("p/"), text("p/file", "x"), link("p", victim), text("p/replaced", "x")])
        ],
    }


def hostile_images(victim: str) -> dict[str, Image]:
    """The same as images, one for each trick."""
    return {name: Image(layers, {"Cmd": ["/x"]}, [f"hostile:{name}"]) for name, layers in hostile(victim).items()}

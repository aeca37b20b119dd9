"""How files lie over each other, and what is checked once they do."""

import pytest

from meshd.config.findings import ConfigError, Finding, Severity, SourceFile
from meshd.config.layers import Loaded, parse_layers
from meshd.config.merge import merge
from meshd.config.settings import MIB, Config, Limit, Replicas, Role, Split
from meshd.quality import Budget

A = "models: [{{name: a, source: b, {}}}]"
NINE = ", ".join(f"a{number}: /x" for number in range(9))
GPU = "GPU-5a3c1b9e-0f2d-4c86-9d1e-7b6a54f3c2d1"


def load(*texts: str) -> Loaded:
    return parse_layers([SourceFile(f"{i}.yaml", text) for i, text in enumerate(texts)])


def errors(*texts: str) -> tuple[Finding, ...]:
    with pytest.raises(ConfigError) as caught:
        load(*texts)
    return tuple(one for one in caught.value.findings if one.severity is Severity.ERROR)


def only(*texts: str) -> Finding:
    found = errors(*texts)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def remarks(*texts: str) -> list[tuple[Severity, str]]:
    return [(one.severity, one.message) for one in load(*texts).findings]


def test_nothing_said_is_the_built_in_default():
    assert load().config == load("").config == load("node:\nmodels:\n").config == Config()


def test_sections_merge_and_the_last_word_counts():
    loaded = load(
        "node: {role: serve, reserve: {vram: 1GiB}}",
        "node: {reserve: {ram: 2GB}}",
        "node:\n  role: client\n",
        "node:\n",
    )
    assert loaded.config.node.role is Role.CLIENT
    assert loaded.config.node.reserve.vram_bytes == 1024 * MIB
    assert loaded.config.node.reserve.ram_bytes == 2_000_000_000
    assert str(loaded.origins["node.role"]) == "2.yaml:2"
    assert str(loaded.origins["node.reserve.vram"]) == "0.yaml:1"
    assert "node.gpus" not in loaded.origins


def test_every_key_reaches_the_config():
    loaded = load(
        f"""
        mesh: {{name: lab, split_ports: 19340}}
        node:
          role: standby
          reserve: {{vram: 1.5GiB, ram: 0B}}
          limit: {{vram: 2GiB, ram: auto}}
          gpus: [{GPU}, pci-0000:03:00.0]
          model_dirs: [/srv/models]
        models:
          - name: big
            source: "big-*.gguf"
            context: 4096
            slots: 2
            replicas: {{min: 2, max: 3}}
            quality: {{min_top1: 0.9, max_kl: 1}}
            calibration: {{law: /srv/law.txt, a-2: /srv/a.txt}}
            aliases: [gpt-4o, Org/Model]
            split: never
        gateway: {{listen: ["[::1]:1000", "localhost:1001"], max_body: 1MiB}}
        console: {{enabled: false, listen: 127.0.0.2:1000}}
        discovery: {{lan: true, nostr: true}}
        """
    )
    config = loaded.config
    assert config.mesh.name == "lab"
    assert config.mesh.split_ports == 19340
    assert config.node.reserve.vram_bytes == 1536 * MIB
    assert config.node.limit == Limit(vram_bytes=2048 * MIB)
    assert config.node.gpus == (GPU, "pci-0000:03:00.0")
    assert config.node.model_dirs == ("/srv/models",)
    (model,) = config.models
    assert (model.name, model.source, model.context, model.slots) == ("big", "big-*.gguf", 4096, 2)
    assert model.replicas == Replicas(2, 3)
    assert model.quality == Budget(min_top1=0.9, max_kl=1.0)
    assert model.calibration == (("a-2", "/srv/a.txt"), ("law", "/srv/law.txt"))
    assert model.aliases == ("gpt-4o", "Org/Model")
    assert model.split is Split.NEVER
    assert config.gateway.listen == ("[::1]:1000", "localhost:1001")
    assert config.gateway.max_body_bytes == MIB
    assert (config.console.enabled, config.console.listen) == (False, "127.0.0.2:1000")
    assert config.discovery.lan
    assert config.discovery.nostr


def test_models_merge_by_name():
    loaded = load(
        "models: [{name: a, source: a.gguf, slots: 2, aliases: [x]}, {name: b, source: b.gguf}]",
        "models: {merge: [{name: a, slots: 4, aliases: {merge: [y, x]}}, {name: c, source: c}]}",
    )
    assert [(m.name, m.source, m.slots, m.aliases) for m in loaded.config.models] == [
        ("a", "a.gguf", 4, ("x", "y")),
        ("b", "b.gguf", "auto", ()),
        ("c", "c", "auto", ()),
    ]
    assert str(loaded.origins["models[a].source"]) == "0.yaml:1"
    assert str(loaded.origins["models[a].name"]) == "0.yaml:1"
    assert str(loaded.origins["models[a].slots"]) == "1.yaml:1"


def test_bounds_and_texts_merge_by_name_and_exact_takes_their_place():
    first = (
        "models: [{name: a, source: a, quality: {min_top1: 0.9},"
        " calibration: {law: /l.txt, old: /o.txt}}]"
    )
    more = (
        "models: {merge: [{name: a, quality: {min_top1: 0.8, max_kl: 0.1},"
        " calibration: {law: /new.txt, it: /i.txt}}]}"
    )
    exact = "models: {merge: [{name: a, quality: exact}]}"
    loaded = load(first, more)
    (model,) = loaded.config.models
    assert model.quality == Budget(min_top1=0.8, max_kl=0.1)
    assert model.calibration == (("it", "/i.txt"), ("law", "/new.txt"), ("old", "/o.txt"))
    assert str(loaded.origins["models[a].quality.max_kl"]) == "1.yaml:1"
    assert str(loaded.origins["models[a].calibration.old"]) == "0.yaml:1"
    assert load(first, exact).config.models[0].quality.exact
    assert load(exact.replace("a,", "a, source: a,"), more).config.models[0].quality == (
        Budget(min_top1=0.8, max_kl=0.1)
    )


def test_models_replace():
    loaded = load(
        "models: [{name: a, source: a.gguf, slots: 2}]",
        "models: {replace: [{name: a, source: other.gguf}]}",
    )
    (model,) = loaded.config.models
    assert (model.source, model.slots) == ("other.gguf", "auto")


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        (
            "models: [{name: a, source: a}]",
            "models:\n  - {name: b, source: b}\n",
            "models",
        ),
        (
            "gateway: {listen: ['127.0.0.1:1']}",
            "gateway: {listen: ['127.0.0.1:2']}",
            "gateway.listen",
        ),
        ("node: {model_dirs: [/a]}", "node: {model_dirs: [/b]}", "node.model_dirs"),
        (f"node: {{gpus: [{GPU}]}}", "node: {gpus: []}", "node.gpus"),
        (
            "models: [{name: a, source: a, aliases: [x]}]",
            "models: {merge: [{name: a, aliases: [y]}]}",
            "models[0].aliases",
        ),
    ],
)
def test_a_plain_list_over_a_list_names_both_ways(first, second, path):
    found = only(first, second)
    assert found.file == "1.yaml"
    assert found.message == f"{path} is a list that 0.yaml:1 has set already"
    assert "merge:" in found.hint
    assert "replace:" in found.hint


def test_lists_merge_onto_the_built_in_default_or_replace_it():
    default = Config().node.model_dirs
    assert load("node: {model_dirs: {merge: [/srv]}}").config.node.model_dirs == (*default, "/srv")
    assert load("node: {model_dirs: [/srv]}").config.node.model_dirs == ("/srv",)
    assert load("node: {model_dirs: {replace: [/srv]}}").config.node.model_dirs == ("/srv",)
    listen = load(
        "gateway: {listen: {merge: ['127.0.0.1:1', '127.0.0.1:9337']}}"
    ).config.gateway.listen
    assert listen == ("127.0.0.1:9337", "127.0.0.1:1")


def test_nothing_can_be_added_to_auto():
    assert "use replace" in only(f"node: {{gpus: {{merge: [{GPU}]}}}}").hint
    assert load(f"node: {{gpus: [{GPU}]}}", "node: {gpus: auto}").config.node.gpus == "auto"


def test_merging_the_same_layer_twice_changes_nothing():
    first = "models: [{name: a, source: a, aliases: [x]}]\nnode: {role: serve}"
    again = "models: {merge: [{name: a, aliases: {merge: [x]}}]}\nnode: {role: serve}"
    assert load(first, again, again).config == load(first).config


def test_merge_of_no_layers_is_empty():
    tree, findings = merge([], {})
    assert tree.entries == ()
    assert findings == []


def test_a_change_to_a_model_that_is_not_there():
    found = only("models: [{name: tiny, source: t}]", "models: {merge: [{name: tinny, slots: 2}]}")
    assert "no source in any file" in found.message
    assert found.hint == "did you mean 'tiny'?"


def test_all_findings_of_all_files_are_listed():
    found = errors(
        "node: {rols: serve, role: serv}\nmodels: [{name: a, source: a, slots: 0}, {nme: b}]\n",
        "gateway: {listen: ['127.0.0.1:3131']}\nmesh: {name: no}\n",
    )
    assert [(one.file, one.line) for one in found] == [
        ("0.yaml", 1),
        ("0.yaml", 1),
        ("0.yaml", 2),
        ("0.yaml", 2),
        ("0.yaml", 2),
        ("0.yaml", 2),
        ("1.yaml", 1),
        ("1.yaml", 2),
    ]
    assert any("cannot listen" in one.message for one in found)  # meaning, beside faults of shape


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("modells: []", 'unknown key "modells"', "did you mean 'models'?"),
        ("slots: 2", 'unknown key "slots"', "it belongs at models[].slots"),
        ("zzz: 2", 'unknown key "zzz"', "known here: console, demand, discovery"),
        ("node: {role: srve}", "node.role must be one of", "did you mean 'serve'?"),
        ("node: {role: 7}", "not 7", "in quotes"),
        ("node: [a]", "node must be a section with keys of its own, not a list", ""),
        ("node: {reserve: {vram: 512}}", "size with its unit", "such as 512MiB"),
        ("node: {reserve: {vram: 512mb}}", "size with its unit", "did you mean 512MiB?"),
        ("node: {reserve: {vram: 2 G}}", "size with its unit", "did you mean 2GiB?"),
        ("node: {gpus: [0]}", "node.gpus[0] must be a stable GPU id", "nvidia-smi -L"),
        ("node: {gpus: [GPU-1]}", "node.gpus[0] must be a stable GPU id", ""),
        ("node: {gpus: atuo}", "node.gpus must be auto or a list", "did you mean 'auto'?"),
        ("node: {model_dirs: [models]}", "absolute path", ""),
        ("node: {model_dirs: /srv}", "a list of folders", "begin each item"),
        ("node: {model_dirs: [/a, /a]}", "is in the list twice", "keep one"),
        (
            "node: {model_dirs: {merge: [/a], replace: [/b]}}",
            "both merge: and replace:",
            "keep one",
        ),
        ("node: {model_dirs: {}}", "node.model_dirs is empty", "write a list"),
        ("models: [{name: a}]", "models[0] has no `source:`", "add source:"),
        ("models: [{source: a}]", "models[0] has no `name:`", "add name:"),
        ("models: {tiny: {source: a}}", "models must be a list of models", ""),
        ("models: [tiny]", "models[0] must be a section", ""),
        ("models: [{name: Tiny, source: a}]", "lower-case", "as aliases"),
        ("models: [{name: a, source: b, context: 'big'}]", "auto or a whole number", ""),
        ("models: [{name: a, source: b, slots: '4'}]", "auto or a whole number", "write 4 without"),
        ("models: [{name: a, source: b, slots: 1.5}]", "auto or a whole number", ""),
        ("models: [{name: a, source: b, slots: 1000}]", "from 1 to 256", ""),
        ("models: [{name: a, source: b, quality: }]", "models[0].quality has no value", "delete"),
        (A.format("quality: hihg"), "exact or bounds, such as {min_top1: 0.95}, not", "high and"),
        (A.format("quality: fair"), 'not "fair"', "in place of high and fair"),
        (A.format("quality: exat"), 'not "exat"', "did you mean 'exact'?"),
        (A.format("quality: true"), "{min_top1: 0.95}, not true", ""),
        (A.format("quality: 0.9"), "{min_top1: 0.95}, not 0.9", "write {min_top1: 0.9}"),
        (A.format("quality: max_kl=.1"), 'not "max_kl=.1"', "write {max_kl: 0.1}"),
        (A.format("quality: [exact]"), "{min_top1: 0.95}, not a list", ""),
        (A.format("quality: {}"), "quality is empty", "write bounds, such as {min_top1: 0.95}, or"),
        (A.format("quality: {min_top: 0.9}"), 'unknown key "min_top"', "did you mean 'min_top1'?"),
        (A.format("quality: {slots: 4}"), 'unknown key "slots"', "it belongs at models[].slots"),
        (A.format("min_top1: 0.9"), "unknown key", "it belongs at models[].quality.min_top1"),
        (
            A.format("quality: {min_top1: 95}"),
            "models[0].quality.min_top1 must be a number from 0 to 1, not 95",
            "did you mean 0.95?",
        ),
        (A.format("quality: {min_top1: 950}"), "number from 0 to 1, not 950", ""),
        (A.format("quality: {min_top1: '0.95'}"), "a number from 0 to 1", "write 0.95 without"),
        (A.format("quality: {min_top1: 95%}"), "a number from 0 to 1", "write 0.95"),
        (A.format("quality: {max_kl: 5%}"), "a number from 0 to 100", ""),
        (A.format("quality: {min_top1: .nan}"), '".nan" is not a finite number', "from 0 to 1"),
        (A.format("quality: {max_kl: .inf}"), '".inf" is not a finite number', "from 0 to 100"),
        (A.format("quality: {min_top1: 9e-1}"), "a number to some YAML programs", "write 0.9"),
        (A.format("quality: {max_kl: 1e99}"), "a number to some YAML programs", "from 0 to 100"),
        (A.format("quality: {min_top1: }"), "min_top1 has no value", "a number from 0 to 1"),
        (A.format("quality: {max_perplexity_ratio: 0.9}"), "a number from 1 to 100, not 0.9", ""),
        (
            A.format("calibration: {Law: /l}"),
            "calibration: a name has lower-case letters, digits and hyphens, at most 32, not",
            "",
        ),
        (A.format("calibration: {law: l.txt}"), "absolute path of a text file, not", ""),
        (A.format("calibration: {law: [/l]}"), "absolute path of a text file, not a list", ""),
        (A.format("calibration: {law: }"), "calibration.law has no value", "absolute path"),
        (A.format("calibration: /l.txt"), "text files by the name of their kind", ""),
        (A.format(f"calibration: {{{NINE}}}"), "has 9 keys; it must have at most 8", ""),
        ("gateway: {listen: []}", "it must have at least 1", ""),
        ("gateway: {listen: ['9337']}", "an IP address and a port", ""),
        ("console: {enabled: 'yes'}", "true or false", "write true without quotes"),
        ("console: {enabled: 1}", "true or false, not 1", ""),
        ("console: {listen: '*:3131'}", "an IP address and a port", ""),
    ],
)
def test_shape_in_words(text, message, hint):
    found = only(text)
    assert message in found.message
    assert hint in found.hint
    assert "schema" not in found.message
    assert (hint == "") == (found.hint == "")


def test_weak_guesses_are_not_made():
    found = only("node: {abcd: 1}")
    assert "did you mean" not in found.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "models: [{name: a, source: x}, {name: a, source: y}]",
            'a model named "a" is there already',
        ),
        ("models: {merge: [{name: a, source: x}, {name: a, slots: 2}]}", "in this list twice"),
        ("models: [{name: a, source: x, aliases: [b]}, {name: b, source: y}]", 'alias "b"'),
        ("models: [{name: a, source: x, aliases: [a]}]", 'alias "a"'),
        ("models: [{name: a, source: 'https://x/y.gguf'}]", "not an address"),
        ("models: [{name: a, source: ~/y.gguf}]", "home folder"),
        ("models: [{name: a, source: ../y.gguf}]", "climb out"),
        ("models: [{name: a, source: 'y/'}]", "not the name of a file"),
        ("models: [{name: a, source: y, replicas: {min: 3, max: 2}}]", "above max"),
        ("gateway: {listen: ['127.0.0.1:3131']}", "the console cannot listen on 127.0.0.1:3131"),
        ("console: {listen: '0.0.0.0:9337'}", "the console cannot listen on"),
        ("console: {listen: '[::]:9337'}", "the console cannot listen on"),
        ("console: {listen: 'localhost:9337'}", "the console cannot listen on"),
        ("gateway: {listen: ['[::1]:1', '[0::1]:1']}", "the gateway cannot listen on"),
        ("console: {listen: '127.0.0.300:1'}", "not an IP address"),
        ("console: {listen: '127.0.0.1:70000'}", "from 1 to 65535"),
        ("gateway: {max_body: 1B}", "from 64KiB to 4GiB"),
        ("gateway: {otlp: 'http://[::1'}", "gateway.otlp: http://[::1 is no URL"),
        ("gateway: {otlp: 'http://collector:99999'}", "is no URL"),
        ("node: {reserve: {ram: 999999TB}}", "at most 16TiB"),
        ("node: {limit: {ram: 1MiB}}", "node.limit.ram must be from 64MiB to 16TiB"),
        ("node: {limit: {vram: 17TiB}}", "node.limit.vram must be from 64MiB to 16TiB"),
        ("mesh: {listen: '[::]:9340'}", "ports 9340 to 9435 are for split models"),
        ("console: {listen: '127.0.0.1:9435'}", "the console cannot listen on 127.0.0.1:9435"),
        ("mesh: {split_ports: 9338}", "the mesh cannot listen on [::]:9338: ports 9338 to 9433"),
        ("demand: {half_life: 1s}", "from 1min to 7d"),
        ("demand: {dwell: 3d}", "from 0s to 1d"),
        ("mesh: {listen: '127.0.0.1:9337'}", "the mesh cannot listen on"),
        (
            "models: [{name: a, source: y, nodes: [b], replicas: {min: 2}}]",
            "2 replicas do not fit on 1 nodes",
        ),
    ],
)
def test_meaning_errors(text, message):
    assert message in only(text).message


@pytest.mark.parametrize(
    "text",
    [
        "console: {enabled: false, listen: '127.0.0.1:9337'}",
        "console: {listen: '127.0.0.2:9337'}",
        "console: {listen: '[::1]:9337'}",
        "gateway: {listen: ['127.0.0.1:1', '127.0.0.1:2', '[::1]:1']}",
        "node: {gpus: []}",
        "node: {limit: {vram: auto, ram: 64MiB}}",
        "console: {listen: '127.0.0.1:9436'}",
        "models: [{name: a, source: x, replicas: {min: 3}}]",
        "models: [{name: a, source: x, replicas: {min: 0, max: auto}, nodes: [box1]}]",
        "mesh: {name: lab, peers: [box1, '10.0.0.2:9338', '[fd00::1]'], preset: wan, core: never}",
        "demand: {half_life: 2h, dwell: 90s}",
        "models: []",
        A.format("quality: {max_perplexity_ratio: 1, min_top1: 0.5}, calibration: {law: /l.txt}"),
        A.format("calibration: {}"),
        "models:\n  - name: a\n    source: b\n    calibration:\n",
    ],
)
def test_what_is_in_order(text):
    assert load(text).findings == ()


@pytest.mark.parametrize(
    ("text", "severity", "message"),
    [
        ("gateway: {listen: ['0.0.0.0:1']}", Severity.WARNING, "other machines"),
        ("console: {listen: '192.168.0.7:1'}", Severity.WARNING, "other machines"),
        ("discovery: {nostr: true}", Severity.WARNING, "discovery.nostr has no effect"),
        ("models: [{name: a, source: x, context: 100}]", Severity.WARNING, "too small"),
        (
            "models: [{name: a, source: x, context: 16777216, slots: 2}]",
            Severity.WARNING,
            "2 slots of 16777216 tokens",
        ),
        (A.format("quality: {min_top1: 1}"), Severity.NOTE, "min_top1: 1 is kept by no part of"),
        (A.format("quality: {max_kl: 0, min_top1: .9}"), Severity.NOTE, "max_kl: 0 is kept by no"),
        (A.format("quality: {min_top1: 0}"), Severity.WARNING, "kept by any part of a model"),
        (
            A.format("quality: {min_top1: .9}, calibration: {code: /c.txt}"),
            Severity.NOTE,
            "code takes the place of the text of that kind that is shipped",
        ),
        (A.format("calibration: {law: /l.txt}"), Severity.NOTE, 'the quality of "a" is exact'),
    ],
)
def test_warnings_and_notes_leave_it_usable(text, severity, message):
    ((found, said),) = remarks(text)
    assert found is severity
    assert message in said


def test_findings_of_meaning_point_into_the_file_that_said_it():
    loaded = load("gateway:\n  max_body: 16MiB\n", "\ndiscovery:\n  nostr: true\n")
    (found,) = loaded.findings
    assert (found.file, found.line, found.column) == ("1.yaml", 3, 10)
    assert found.source_line == "  nostr: true"


def test_findings_keep_the_order_of_the_layers():
    first = "console: {listen: '0.0.0.0:2'}"
    found = load(first, "gateway: {listen: ['0.0.0.0:1']}", "discovery: {nostr: true}").findings
    assert [one.file for one in found] == ["0.yaml", "1.yaml", "2.yaml"]


def test_parse_layers_of_the_files_gives_the_same_again():
    loaded = load("mesh: {name: a}", "mesh: {name: b}")
    assert parse_layers(loaded.files) == loaded

"""`meshd experts show|rank|cut|measure|plan`: what meshd does by itself with a mixture of experts,
step by step, on files; no meshd has to run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.cli.experts_model import Mixture
    from meshd.experts.ranking import Ranking


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "experts",
        help="rank, cut, measure and divide the experts of a mixture, on files",
        description="What meshd does by itself for models with bounds of quality, step by step.",
    )
    actions = verb.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], said: str):  # type: ignore[no-untyped-def]
        parser = actions.add_parser(name, help=said, description=f"{said[0].upper()}{said[1:]}.")
        parser.add_argument("file", type=Path, metavar="FILE", help="a GGUF; of a split any part")
        parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
        parser.set_defaults(run=_said(run))
        return parser

    action("show", _show, "say how a model's experts lie in it, or why they cannot be divided")
    rank = action("rank", _rank, "count how often each layer chooses each expert")
    _takes_texts(rank)
    rank.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: MODEL.ranking.json"
    )
    cut = action("cut", _cut, "write a model with a part of the experts, the most chosen ones")
    cut.add_argument("--ranking", type=Path, required=True, metavar="FILE", help="of `rank`")
    cut.add_argument(
        "--keep", required=True, metavar="N", help="experts of each layer, or a share of them: 75%%"
    )
    _writes(cut, "MODEL.NofALL.gguf")
    measure = action("measure", _measure, "measure what a model loses beside the whole one")
    measure.add_argument(
        "--against", type=Path, required=True, metavar="MODEL", help="the whole model"
    )
    _takes_texts(measure)
    plan = action("plan", _plan, "divide the experts among nodes, as a mesh would")
    plan.add_argument("--ranking", type=Path, required=True, metavar="FILE", help="of `rank`")
    plan.add_argument(
        "--nodes", required=True, metavar="N,N,..",
        help="experts of each layer that each has room for, as 12,10,8 or ann=12,bob=10",
    )  # fmt: skip


def _takes_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text", action="append", default=[], metavar="KIND=FILE",
        help="a kind of text beside the shipped prose and code (several times)",
    )  # fmt: skip


def _writes(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"default: {default}, here"
    )


def _said(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """With all that can be wrong as one line."""

    def work(arguments: argparse.Namespace) -> int:
        from meshd import logging
        from meshd.errors import UserError
        from meshd.experts.ranking import RankingError

        # On stderr: what is printed may be JSON.
        logging.configure()
        try:
            return run(arguments)
        except RankingError as error:
            raise UserError(str(error)) from error
        except BrokenPipeError:
            raise  # of our own output: `main` knows
        except OSError as error:
            where = error.filename or arguments.file
            raise UserError(f"{where}: {error.strerror or error}") from error

    return work


def _show(arguments: argparse.Namespace) -> int:
    """Exit code 1 where no shard can be made of it."""
    from meshd.cli.answer import print_json
    from meshd.cli.experts_model import mixture
    from meshd.cli.experts_words import size
    from meshd.experts.anatomy import UndividableError
    from meshd.models.gguf_facts import read_facts

    facts = read_facts(arguments.file)
    expert_bytes = sum(layer.expert_bytes for layer in facts.layers)
    shown: dict[str, object] = {
        "architecture": facts.architecture,
        "quantisation": facts.quantisation,
        "file_bytes": facts.file_bytes,
        "expert_bytes": expert_bytes,
        "layers": len(facts.layers),
    }
    try:
        model = mixture(arguments.file)
    except UndividableError as error:
        if not arguments.json:
            raise
        print_json({**shown, "undividable": str(error)})
        return 1
    found = model.anatomy
    counted = sum(map(bool, found.counted))
    if arguments.json:
        print_json(
            {**shown, "undividable": "", "fingerprint": model.fingerprint, **_anatomy(model)}
        )
        return 0
    groups = ""
    if found.groups:
        groups = f" in {found.groups} groups, of which a router first chooses {found.groups_used}"
    print(
        f"{arguments.file}: {facts.architecture} {facts.quantisation}, {counted} of "
        f"{len(facts.layers)} layers have {found.experts} experts{groups}; {found.used} for a token"
    )
    each = expert_bytes / found.experts
    print(
        f"{size(facts.file_bytes)}: {size(facts.file_bytes - expert_bytes)} that every shard "
        f"has, and {size(each)} for each expert that all layers keep, {found.least} or more"
        + (f" in steps of {found.step}" if found.step > 1 else "")
    )
    return 0


def _anatomy(model: Mixture) -> dict[str, object]:
    found = model.anatomy
    return {
        "experts": found.experts,
        "used": found.used,
        "groups": found.groups,
        "groups_used": found.groups_used,
        "least": found.least,
        "counted": found.counted,
        "cut": sorted(found.cut),
    }


def _rank(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.cli.bar import Bar
    from meshd.cli.experts_model import mixture, own_texts
    from meshd.cli.experts_work import rank

    texts, model = own_texts(arguments.text), mixture(arguments.file)
    output = _free(arguments.output or Path(f"{model.stem}.ranking.json"))
    began_s, bar = time.monotonic(), Bar(model.name, sys.stderr)
    try:
        ranking = rank(model, texts, output, arguments.paths, lambda share: bar.show(share))
    finally:
        bar.end()
    took_s = time.monotonic() - began_s
    if arguments.json:
        print_json(
            {
                "ranking": str(output),
                "digest": ranking.digest,
                "calibration": ranking.calibration,
                "tokens": ranking.tokens,
                "seconds": round(took_s, 3),
            }
        )
        return 0
    half = -(-model.anatomy.experts // (2 * model.anatomy.step)) * model.anatomy.step
    mass, least = _masses(model, ranking, half)
    print(
        f"{output}: {ranking.tokens} tokens counted in {took_s:.0f} s; the {half} most chosen of "
        f"{model.anatomy.experts} experts take {mass:.0%} of the choices, {least:.0%} in the "
        "layer that spreads them most"
    )
    return 0


def _masses(model: Mixture, ranking: Ranking, kept: int) -> tuple[float, float]:
    """Mean over the layers, and least."""
    from meshd.experts.most_chosen import most_chosen

    masses = ranking.masses(most_chosen(ranking, kept, model.anatomy.groups))
    return sum(masses) / len(masses), min(masses)


def _cut(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.cli.bar import Bar
    from meshd.cli.experts_model import kept_of, mixture, ranking_of, selection_of
    from meshd.cli.experts_words import size
    from meshd.cli.experts_work import cut

    model = mixture(arguments.file)
    kept = kept_of(arguments.keep, model.anatomy)
    ranking = ranking_of(model, arguments.ranking)
    of = f"{kept}of{model.anatomy.experts}"
    output = _free(arguments.output or Path(f"{model.stem}.{of}.gguf"))
    bar = Bar(output.name, sys.stderr)
    try:
        written = cut(model, selection_of(model.anatomy, ranking, kept), output, bar.show)
    finally:
        bar.end()
    mass, least = _masses(model, ranking, kept)
    if arguments.json:
        print_json(
            {
                "shard": str(output),
                "size_bytes": written.size_bytes,
                "sha256": written.sha256,
                "experts": kept,
                "experts_all": model.anatomy.experts,
                "mass": mass,
                "least_mass": least,
            }
        )
        return 0
    print(
        f"{output}: {kept} of {model.anatomy.experts} experts, {size(written.size_bytes)}; they "
        f"took {mass:.1%} of the choices that were counted, {least:.1%} in the worst layer"
    )
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.cli.bar import Bar
    from meshd.cli.experts_model import own_texts
    from meshd.cli.experts_words import table
    from meshd.cli.experts_work import measure_by_domain
    from meshd.quality import rounded_down, rounded_up

    texts = own_texts(arguments.text)
    bar = Bar(arguments.file.name, sys.stderr)
    try:
        found = measure_by_domain(
            arguments.file, arguments.against, texts, arguments.paths, bar.show
        )
    finally:
        bar.end()
    if arguments.json:
        print_json({"file": str(arguments.file), "against": str(arguments.against),
                    "engine": found.engine, "tokens": found.tokens,
                    "measured": [asdict(one) for one in found.measured]})  # fmt: skip
        return 0
    print(
        f"{arguments.file} beside {arguments.against}, by {found.engine}, "
        f"{found.tokens} tokens of each text at most:"
    )
    rows = [
        (
            one.domain,
            f"{rounded_down(one.top1, 3):.3f}",
            f"{rounded_up(one.perplexity_ratio, 3):.3f}",
            f"{rounded_up(one.kl, 3):.3f}",
        )
        for one in found.measured
    ]
    print(table(("", "top-1", "perplexity ratio", "KL, nats"), rows))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from meshd.cli.answer import print_json
    from meshd.cli.experts_model import mixture, nodes_of, ranking_of
    from meshd.cli.experts_words import planned
    from meshd.errors import UserError
    from meshd.experts.shard_writer import shard_bytes
    from meshd.planner.shard_plan import shard_plan

    nodes, model = nodes_of(arguments.nodes), mixture(arguments.file)
    anatomy = model.anatomy
    plan = shard_plan(
        ranking_of(model, arguments.ranking),
        nodes,
        experts=anatomy.experts,
        groups=anatomy.groups,
        used=anatomy.used,
    )
    if plan.problem:
        raise UserError(f"no plan: {plan.problem}")
    sizes = {
        node: shard_bytes(model.files, anatomy.complete(selection))
        for node, selection in plan.selections.items()
    }
    if arguments.json:
        print_json(
            {
                "core": max(plan.core),
                "homes": plan.homes,
                "nodes": {
                    node: {
                        "experts": max(map(len, selection)),
                        "mass": plan.mass(node),
                        "least_mass": plan.least_mass(node),
                        "masses": plan.masses[node],
                        "size_bytes": sizes[node],
                        "selection": selection,
                    }
                    for node, selection in plan.selections.items()
                },
            }
        )
        return 0
    print(planned(plan, sizes, anatomy.experts))
    return 0


def _free(output: Path) -> Path:
    """:raises UserError: something is there already: it may be the model itself."""
    from meshd.errors import UserError

    if output.exists() or output.is_symlink():
        raise UserError(f"{output}: is there already", hint="-o names another file")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output.absolute().parent}: is no folder")
    return output

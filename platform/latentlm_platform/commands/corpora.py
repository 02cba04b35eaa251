"""Public corpora by name, brought into $LATENTLM_HOME/corpora with licence and hash.

  latentlm corpora list                  what there is, and what is fetched
  latentlm corpora fetch fashion_mnist   download and convert (about 31 MB)

Then write `source: fashion_mnist/train` in an experiment; `latentlm run` also fetches what is
missing by itself. Your own images need none of this: give a folder with one folder a class,
Parquet with image bytes, or WebDataset tars, on disk or at a URI.
"""

import argparse
from typing import Any

from latentlm_platform.commands import Result
from latentlm_platform.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """`list`, or `fetch` and names."""
    parser.add_argument("action", choices=["list", "fetch"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="corpora to fetch")


def execute(arguments: argparse.Namespace) -> Result:
    """Report: one entry a corpus, with its card where it is fetched."""
    from latentlm_platform.corpora.named import CORPORA, fetch

    if arguments.action == "list":
        if arguments.names:
            raise UserError("`latentlm corpora list` takes no names; use `corpora fetch NAME`")
        entries = {name: _describe(name) for name in CORPORA}
        for name, entry in entries.items():
            print(f"{name:20} {'fetched' if entry['fetched'] else '-':8} {entry['what']}")
            sources = ", ".join(entry["sources"])
            print(f"{'':20} {'':8} {entry['licence']} · source: {sources}")
        return Result(entries)
    if not arguments.names:
        raise UserError(f"`latentlm corpora fetch` needs a name: {', '.join(CORPORA)}")
    cards = {}
    for name in arguments.names:
        cards[name] = fetch(name)
        counts = ", ".join(f"{s} {f['records']:,}" for s, f in cards[name]["splits"].items())
        print(f"{name}: {counts} records · {cards[name]['licence']} · {_describe(name)['folder']}")
    return Result(cards)


def _describe(name: str) -> dict[str, Any]:
    from latentlm_platform.corpora.named import CORPORA, is_fetched
    from latentlm_platform.home import corpora_folder

    corpus = CORPORA[name]
    return {
        "what": corpus.what,
        "licence": corpus.licence,
        "origin": corpus.origin,
        "packages": list(corpus.packages),
        "sources": [f"{name}/{split}" for split in corpus.splits],
        "class_names": list(corpus.class_names),
        "fetched": is_fetched(name),
        "folder": str(corpora_folder() / name),
    }

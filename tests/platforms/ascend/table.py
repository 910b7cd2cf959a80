"""Print what is checked of each op that Tilewise calls: `python -m tests.platforms.ascend.table`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from tests.platforms.ascend.device import strict
from tests.platforms.ascend.interface import Interface
from tests.platforms.ascend.mutations import RIGHT, mutations
from tests.platforms.ascend.test_interface import make_all_calls, refused_by, replayed
from tests.platforms.ascend.wheels import VERSIONS


def row(made: Interface, name: str) -> list[str]:
    missing = [version for version in VERSIONS if replayed(version, made.calls[name].values())]
    wrong = [one for args, kwargs in made.examples[name] for one in mutations(args, kwargs)]
    tried = [(what, call) for what, call in wrong if (name, what) not in RIGHT]
    with strict():
        caught = sum(refused_by(name, *call) for _, call in tried)
    meta = "none" if name in made.without_meta else "yes"
    versions = f"not {', '.join(missing)}" if missing else "all"
    return [name, versions, f"{len(made.calls[name])}", meta, f"{caught} of {len(tried)}"]


def main() -> None:
    made = make_all_calls()
    table = Table("op", f"torch_npu {VERSIONS[0]} to {VERSIONS[-1]}", "calls", "meta kernel", "wrong calls caught")
    for name in made.calls:
        table.add_row(*row(made, name))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

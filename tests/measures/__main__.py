"""Measures of the package's build, as a table: `python -m tests.measures`.

| measure | before it is built anew |
|---|---|
| modules | 144 |
| lines of code, without blanks, comments and docstrings | 11,756 |
| names at the package's top | 88 |
| circles, counting imports for type checking | 2, of 16 and 3 modules |
| longest chain of imports | 21 |
| longest module, in lines of code | 319 |
| modules of one function | 12 |
| a job sent: modules and room changes | 18 and 42 |
| a job run: modules and room changes | 24 and 52 |
| a failure: modules and room changes | 27 and 63 |
| a replay: modules and room changes | 13 and 29 |
| an installation changed: modules and room changes | 45 and 135 |
| our frames above the app's function in a traceback | 6 |
| modules of ours that `posthog_jobs.testing` loads, and seconds | 78, 0.73 |

A chain of imports counts a circle as one link. How walks are counted stands in `walks.py`; the
worker's vary by a few changes from run to run, by how often it looked at its queues meanwhile.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.measures import source
from tests.measures.walks import loaded, walks
from tests.servers.nodes import RedisProcess


def rows(server: RedisProcess) -> dict[str, str]:
    """Return measure → figure."""
    modules = source.modules()
    lines = {name: source.lines_of_code(file) for name, file in modules.items()}
    graph = source.imports()
    circles = source.circles(graph)
    longest = max(lines, key=lines.__getitem__)
    found, frames = walks(server)
    count, seconds = loaded("posthog_jobs.testing")
    sizes = " and ".join(str(len(circle)) for circle in circles)
    return {
        "modules": str(len(modules)),
        "lines of code": f"{sum(lines.values()):,}",
        "names at the package's top": str(source.names_at_the_top()),
        "circles, counting imports for type checking": (
            f"{len(circles)}, of {sizes} modules" if circles else "0"
        ),
        "longest chain of imports": str(source.longest_chain(graph)),
        "longest module": f"{lines[longest]} lines: {longest}",
        "modules of one function": str(len(source.of_one_function())),
        **{
            f"{name}: modules and room changes": f"{walk.modules} and {walk.changes}"
            for name, walk in found.items()
        },
        "our frames above the app's function in a traceback": str(frames),
        "modules of ours that posthog_jobs.testing loads, and seconds": f"{count}, {seconds:.2f}",
    }


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        for server in RedisProcess.launch(Path(folder)).serve():
            print("| measure | now |\n|---|---|")
            for name, figure in rows(server).items():
                print(f"| {name} | {figure} |")


if __name__ == "__main__":
    main()

"""An installed Tramontane serves the playground: the wheel brings the client along."""

from pathlib import Path
from zipfile import ZipFile

from hatchling.builders.wheel import WheelBuilder
from served import CLIENT


def test_the_wheel_has_the_page_and_every_module_of_the_client(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(CLIENT.parents[1])).build(directory=str(tmp_path), versions=["standard"])

    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    playground = "tramontane/api/playground"
    assert {f"{playground}/{name}" for name in ("index.html", "playground.css", "playground.js", "wind.svg")} <= names
    assert {f"{playground}/client/{path.name}" for path in (CLIENT / "src").iterdir()} <= names

"""docs/settings.md says what the settings are."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_settings_is_current() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "settings_table.py"))

    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == script["render"](), (
        "run python scripts/settings_table.py"
    )

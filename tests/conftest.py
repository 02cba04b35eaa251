"""How tests share two processes: a group stays in one, with the Ray or the browser it uses."""

import pytest

GROUPS = ("ray", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test that needs a heavy companion joins its group; xdist starts the largest first."""
    for item in items:
        for group in GROUPS:
            if item.get_closest_marker(group):
                item.add_marker(pytest.mark.xdist_group(group))

"""Options and fixtures shared by the suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden_data import Case


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", type=Path, help="folder with the full-size golden traces, for the slow tests")
    parser.addoption("--slow", action="store_true", help="also run the slow tests (full-size models)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="full-size model: run with --slow --golden-dir DIR"))


@pytest.fixture(scope="session")
def tiny() -> Case:
    return Case("tiny")

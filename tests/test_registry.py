"""The records of what the library offers by name."""

from __future__ import annotations

import pytest

from scenekd import registry
from scenekd.errors import UserError


@pytest.fixture
def empty(monkeypatch):
    """A registry without records."""
    monkeypatch.setattr(registry, "_RECORDS", {})


def test_register_and_look_up(empty):
    """The decorator returns the factory itself; kinds are kept apart."""

    @registry.register("loss", "Zero")
    def zero():
        return 0

    @registry.register("model", "Zero")
    class Zero:
        pass

    registry.register("loss", "Another")(zero)
    assert zero() == 0
    assert registry.lookup("loss", "Zero") is zero
    assert registry.lookup("model", "Zero") is Zero
    assert registry.names("loss") == ["Another", "Zero"]
    assert registry.records() == [("loss", "Another", zero), ("loss", "Zero", zero), ("model", "Zero", Zero)]


def test_a_name_belongs_to_one_factory(empty):
    """The same factory again is fine (a module imported twice); another one is a mistake."""
    registry.register("loss", "Len")(len)
    registry.register("loss", "Len")(len)
    with pytest.raises(ValueError, match="loss 'Len' is registered already, by builtins"):
        registry.register("loss", "Len")(max)
    assert registry.lookup("loss", "Len") is len


def test_unknown_names_list_the_known(empty):
    """The error says what there is."""
    with pytest.raises(UserError, match="unknown loss 'X'; known: none"):
        registry.lookup("loss", "X")
    registry.register("loss", "B")(len)
    registry.register("loss", "A")(len)
    with pytest.raises(UserError, match="unknown loss 'X'; known: A, B$"):
        registry.lookup("loss", "X")


def test_public_names():
    """Names that configs of other frameworks use."""
    import kd_mtl
    from scenekd.losses.soft_label import SoftLabelCrossEntropy

    assert registry.lookup("model", "BlitzNet") is kd_mtl.BlitzNet
    assert registry.lookup("loss", "SoftLabelCrossEntropy") is SoftLabelCrossEntropy
    for kind, name, _ in registry.records():
        if kind == "benchmark":  # not published to a framework
            continue
        # A framework may have a class of the same name; ours would never be found behind it.
        assert name in ("BlitzNet", "SoftLabelCrossEntropy") or "SceneKD" in name, (kind, name)

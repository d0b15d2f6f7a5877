"""What a model has otherwise than its mixers are published with: optional fields of their specs.

`GateChanges` and `LayerChanges` have the fields of `GateSpec` and `LayerSpec`, each None
unless it is changed. They are made from these classes, so that a field is written there alone.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar, get_args, get_type_hints

from carve_jax.mixers.gates import GateSpec
from carve_jax.mixers.layer import LayerSpec

Spec = TypeVar("Spec", GateSpec, LayerSpec)

IN_WORDS = {int: "an integer of at least 1", bool: "True or False", str: "text", float: "a number"}


class Changes:
    """Fields of a spec, of which None leaves what a mixer is published with; frozen.

    Attributes:
      section: the name that messages give it, such as "gates".
      spec: the class whose fields these are.
      kinds: type of each field where it is not None.
    """

    section: ClassVar[str]
    spec: ClassVar[type]
    kinds: ClassVar[Mapping[str, type]]

    def __post_init__(self) -> None:
        """Refuse values of another type, and integers below 1."""
        for name, value in self.given().items():
            kind = self.kinds[name]
            number = kind is float and type(value) is int
            if not (type(value) is kind or number) or (kind is int and value < 1):
                raise ValueError(f"{self.section}.{name}={value!r}; it must be {IN_WORDS[kind]}.")

    @classmethod
    def of(cls, given: "Changes | Mapping[str, Any]") -> Self:
        """The changes in a mapping of fields, or those that are already.

        Raises:
          ValueError: a field that there is not.
          TypeError: neither the one nor the other.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise TypeError(f"{cls.section}={given!r}; give a mapping of its fields.")
        for name in given:
            if name not in cls.kinds:
                near = difflib.get_close_matches(str(name), cls.kinds, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"{cls.section} has no field {str(name)[:60]!r}; did you mean {near!r}?"
                )
        return cls(**given)

    def given(self) -> dict[str, Any]:
        """The fields that are changed."""
        values = {name: getattr(self, name) for name in self.kinds}
        return {name: value for name, value in values.items() if value is not None}

    def applied(self, spec: Spec) -> Spec:
        """The spec with these changes.

        Raises:
          ValueError: they mean nothing together.
        """
        return dataclasses.replace(spec, **self.given())


def _changes(name: str, section: str, spec: type[Spec]) -> type[Changes]:
    """The class of changes of a spec."""
    hints = get_type_hints(spec)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(spec)}
    kinds = {field: (get_args(kind) or (kind,))[0] for field, kind in kinds.items()}
    made = dataclasses.make_dataclass(
        name,
        [(field, kind | None, None) for field, kind in kinds.items()],
        bases=(Changes,),
        namespace={
            "section": section,
            "spec": spec,
            "kinds": kinds,
            "__doc__": f"Changes of {spec.__name__}.",
        },
        frozen=True,
    )
    made.__module__ = __name__
    return made


GateChanges = _changes("GateChanges", "gates", GateSpec)
LayerChanges = _changes("LayerChanges", "layer", LayerSpec)

SECTIONS: Mapping[str, type[Changes]] = {
    changes.section: changes for changes in (GateChanges, LayerChanges)
}
"""The classes of changes by the field of LMConfig, and the section of a config, that they are."""

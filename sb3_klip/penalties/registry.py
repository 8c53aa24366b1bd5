"""From a name or a spec to a penalty, and from a penalty to what is stored in a saved model."""

import contextlib
import copy
import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sb3_klip.penalties.base import Penalty

_REGISTERED: dict[str, type[Penalty]] = {}


def register_penalty(name: str) -> Callable[[type[Penalty]], type[Penalty]]:
    """
    Class decorator that gives a penalty a short name, for ``KLipPPO(..., penalty=name)``, YAML and the command line.

    :param name: the name
    :return: the decorator
    :raises ValueError: if another class has the name already
    """

    def register(cls: type[Penalty]) -> type[Penalty]:
        taken = _REGISTERED.get(name)
        # The same class again is a module that was reloaded, as notebooks do.
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the penalty name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another")
        cls.name = name
        _REGISTERED[name] = cls
        return cls

    return register


def available_penalties() -> list[str]:
    """
    :return: the names that :func:`make_penalty` knows, in alphabetical order
    """
    return sorted(_REGISTERED)


def penalty_class(name: str) -> type[Penalty]:
    """
    :param name: a registered name, or the dotted path ``package.module.Class`` of a :class:`Penalty`
    :return: the class; its module is imported if it is not yet
    :raises ValueError: if there is no such penalty; names the nearest ones
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if "." in name.strip("."):
        return _class_at(name)
    near = difflib.get_close_matches(name, _REGISTERED, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"available: {', '.join(available_penalties())}"
    raise ValueError(f"unknown penalty {name!r}; {advice}")


def make_penalty(penalty: "str | Mapping[str, Any] | type[Penalty] | Penalty", /, **parameters: Any) -> Penalty:
    """
    Make a penalty from the forms in which users write one.

    :param penalty: a name (``"sigmoid"``), a spec (``{"name": "sigmoid", "softness": 0.05}``), a subclass of
        :class:`Penalty`, or a penalty, which is returned as it is
    :param parameters: parameters of the shape, where ``penalty`` is not one already
    :return: the penalty
    :raises ValueError: for an unknown name or parameter, or a value outside its range
    """
    if isinstance(penalty, Penalty):
        if parameters:
            raise ValueError(f"{penalty!r} is built already: give {', '.join(parameters)} when building it")
        return penalty
    if isinstance(penalty, type) and issubclass(penalty, Penalty):
        return penalty(**parameters)
    if isinstance(penalty, Mapping):
        spec = dict(penalty)
        if not isinstance(spec.get("name"), str) or not all(isinstance(key, str) for key in spec):
            raise ValueError(f'a penalty spec needs a "name" and parameters by name, as in {{"name": "hard"}}, got {spec!r}')
        twice = spec.keys() & parameters.keys()
        if twice:
            raise ValueError(f"given twice, in the spec and beside it: {', '.join(sorted(twice))}")
        return make_penalty(spec.pop("name"), **spec, **parameters)
    if not isinstance(penalty, str):
        raise ValueError(f"a penalty is a name, a spec or a Penalty, got {penalty!r}")
    cls = penalty_class(penalty)
    try:
        return cls(**parameters)
    except ValueError as error:
        owners = sorted({owner for key in parameters for owner in _owners(key)} - {cls.name})
        unknown = parameters.keys() - cls.parameters().keys()
        if unknown and owners:
            raise ValueError(f"{error} ({', '.join(sorted(unknown))} belongs to {', '.join(owners)})") from None
        raise


def adopt_penalty(penalty: Penalty) -> Penalty:
    """
    Make a penalty one's own. One that learns is copied, so that two models, or two parts of a combination, that
    were given the same object do not teach each other.

    :param penalty: the penalty
    :return: the same, or a copy if it has a state
    """
    return copy.deepcopy(penalty) if penalty.state_dict() else penalty


def dump_penalty(penalty: Penalty) -> dict[str, Any]:
    """
    What a saved model keeps of a penalty.

    :param penalty: the penalty
    :return: ``penalty``, its spec, and ``penalty_state``: what it has learned, the spec that this is for, and the
        modules that define its classes; all of it plain JSON. Where JSON cannot hold the penalty, as with a parameter
        that is a Python function, it is the penalty itself, left to SB3's pickling as a ``clip_range`` that is a
        function is
    """
    try:
        spec = penalty.spec()
    except ValueError:
        return {"penalty": penalty, "penalty_state": None}
    state = {"spec": spec, "values": penalty.state_dict(), "modules": sorted(_defining_modules(penalty))}
    return {"penalty": spec, "penalty_state": state}


def import_shapes(modules: Iterable[str]) -> None:
    """
    Import the modules that register shapes of the user's, where they can be found; a shape that is still missing is
    reported when it is made.

    :param modules: names of modules
    """
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def _defining_modules(penalty: Penalty) -> set[str]:
    parts = [value for value in vars(penalty).values() if isinstance(value, Penalty)]
    return {type(penalty).__module__}.union(*map(_defining_modules, parts))


def _owners(parameter: str) -> list[str]:
    return [name for name, cls in _REGISTERED.items() if parameter in cls.parameters()]


def _class_at(path: str) -> type[Penalty]:
    # A class defined in a function or in a notebook cell cannot be imported, but it is known while it lives.
    for cls in _subclasses(Penalty):  # type: ignore[type-abstract]
        if f"{cls.__module__}.{cls.__qualname__}" == path:
            return cls
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"the penalty {path!r} is not defined here ({error}); import the module that defines it first"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Penalty)):
        raise ValueError(f"{path!r} is not a subclass of sb3_klip.penalties.Penalty")
    return found


def _subclasses(cls: type[Penalty]) -> list[type[Penalty]]:
    # The newest first, so that a notebook cell that is run again gives the new class.
    return [found for child in reversed(cls.__subclasses__()) for found in [child, *_subclasses(child)]]

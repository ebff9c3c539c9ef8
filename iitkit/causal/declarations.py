"""How the variables of a causal model are declared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar, overload

from iitkit.causal.variables import Domain, Mechanism, Open
from iitkit.errors import IITKitError, choices, did_you_mean

Function = TypeVar("Function", bound=Callable[..., Any])


class Declarations:
    """The variables of a causal model: what is declared of each, before anything is computed."""

    def __init__(self) -> None:
        self.exogenous: dict[str, Domain] = {}
        self.open: dict[str, Open] = {}
        self.mechanisms: dict[str, Mechanism] = {}
        self.constraints: dict[str, Mechanism] = {}
        self.samplers: list[Callable[..., Mapping[str, Sequence[Hashable]]]] = []
        self._order: list[str] | None = None

    @property
    def domains(self) -> dict[str, Domain]:
        """Every variable's domain."""
        return {**self.exogenous, **{name: m.domain for name, m in self.mechanisms.items()}}

    def check_variable(self, name: str, where: str = "variable") -> None:
        """Check that a variable exists.

        Raises:
            IITKitError: naming it, the closest, and all there are.
        """
        known = [*self.exogenous, *self.mechanisms]
        if name not in known:
            raise IITKitError(
                f"{where} {name!r} is no variable.{did_you_mean(name, known)} The variables are {choices(known)}"
            )

    def variables(self, /, **domains: Sequence[Hashable] | Open) -> None:
        """Declare exogenous variables and their domains.

        Raises:
            IITKitError: an empty domain, a value that stands twice or is None, a name that is taken.
        """
        for name, values in domains.items():
            self._new(name)
            if isinstance(values, Open):
                self.open[name], self.exogenous[name] = values, Domain(name)
                self.exogenous[name].complete = False
                continue
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise IITKitError(f"variable {name!r}: domain {values!r}: expected a list of values, or Open(draw)")
            domain = Domain(name, list(values), declared=True)
            if not len(domain):
                raise IITKitError(f"variable {name!r} has an empty domain")
            self.exogenous[name] = domain

    @overload
    def mechanism(self, function: Function) -> Function: ...

    @overload
    def mechanism(
        self, *, domain: Sequence[Hashable] | None = None, vectorised: bool = False
    ) -> Callable[[Function], Function]: ...

    def mechanism(
        self,
        function: Function | None = None,
        *,
        domain: Sequence[Hashable] | None = None,
        vectorised: bool = False,
    ) -> Function | Callable[[Function], Function]:
        """Declare a variable computed from others: the function's name and its arguments' names are the graph.

        Args:
            function: the computation.
            domain: the values it may take, in order; those that it takes unless said.
            vectorised: whether the function takes arrays of its parents' values, [n] each, and returns n values.

        Raises:
            IITKitError: a name that is taken, a function without named arguments.
        """

        def declare(function: Function) -> Function:
            name = function.__name__
            self._new(name)
            self.mechanisms[name] = Mechanism(name, function, domain, vectorised)
            return function

        return declare if function is None else declare(function)

    @overload
    def constraint(self, function: Function) -> Function: ...

    @overload
    def constraint(self, *, vectorised: bool = False) -> Callable[[Function], Function]: ...

    def constraint(
        self, function: Function | None = None, *, vectorised: bool = False
    ) -> Function | Callable[[Function], Function]:
        """Declare a condition on variables; inputs for which it is false are never sampled.

        Args:
            function: the condition.
            vectorised: whether it takes arrays of its parents' values, [n] each, and returns n truths.

        Raises:
            IITKitError: a name that another constraint has.
        """

        def declare(function: Function) -> Function:
            name = function.__name__
            if name in self.constraints:
                raise IITKitError(f"constraint {name!r} is declared twice: name each differently")
            self.constraints[name] = Mechanism(name, function, vectorised=vectorised, kind="constraint")
            self._order = None
            return function

        return declare if function is None else declare(function)

    def sampler(self, function: Function) -> Function:
        """Declare how some exogenous variables are drawn together; the others are drawn evenly, each by itself.

        Args:
            function: ``draw(generator, n)`` or ``draw(generator, n, among)``, which returns variable → n values;
                ``among`` holds the values that the split may use.
        """
        if len(inspect.signature(function).parameters) not in (2, 3):
            raise IITKitError(
                f"sampler {function.__name__!r}: expected the arguments (generator, n) or (generator, n, among)"
            )
        self.samplers.append(function)
        return function

    def _new(self, name: str) -> None:
        if name in self.exogenous or name in self.mechanisms:
            raise IITKitError(f"variable {name!r} is declared twice")
        self._order = None
